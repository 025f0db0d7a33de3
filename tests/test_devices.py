"""Which device is chosen, and what the environment variable may say."""

import pytest
import torch

from mha_tutor import available_devices, default_device


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("MHA_TUTOR_DEVICE", raising=False)


def _pretend_cuda(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_cpu_without_cuda(monkeypatch):
    _pretend_cuda(monkeypatch, 0)
    assert available_devices() == [torch.device("cpu")]
    assert default_device() == torch.device("cpu")


def test_cuda_comes_first_when_there_is_one(monkeypatch):
    _pretend_cuda(monkeypatch, 1)
    assert available_devices() == [torch.device("cpu"), torch.device("cuda")]
    assert default_device() == torch.device("cuda")


def test_mps_only_when_it_is_asked_for(monkeypatch):
    _pretend_cuda(monkeypatch, 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert default_device() == torch.device("cpu")
    monkeypatch.setenv("MHA_TUTOR_DEVICE", "mps")
    assert default_device() == torch.device("mps")
    assert available_devices() == [torch.device("cpu"), torch.device("mps")]


def test_the_variable_overrules(monkeypatch):
    _pretend_cuda(monkeypatch, 1)
    monkeypatch.setenv("MHA_TUTOR_DEVICE", "cpu")
    assert default_device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "must name a device such as 'cpu', got 'gpu'"),
        ("cuda", "'cuda', but this machine has no such device"),
        ("cuda:1", "'cuda:1', but this machine has no such device"),
        ("meta", "'meta', but this machine has no such device"),
    ],
)
def test_a_device_that_is_not_there(monkeypatch, name, message):
    _pretend_cuda(monkeypatch, 0)
    monkeypatch.setenv("MHA_TUTOR_DEVICE", name)
    with pytest.raises(ValueError, match=message):
        default_device()
    with pytest.raises(ValueError, match=message):
        available_devices()
