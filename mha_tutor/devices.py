"""Which device the notebooks compute on."""

import os

import torch

__all__ = ["available_devices", "default_device"]

VARIABLE = "MHA_TUTOR_DEVICE"


def available_devices() -> list[torch.device]:
    """List the devices on which everything in this package works: the CPU, and CUDA if there is.

    Apple's `mps` has no float64, which the comparisons with the reference need, so it is in the
    list only when `MHA_TUTOR_DEVICE` names it.

    Returns:
        At least one device; the CPU comes first.

    Raises:
        ValueError: `MHA_TUTOR_DEVICE` names a device that is not there.

    Example:
        >>> available_devices()[0]
        device(type='cpu')
    """
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    wanted = _wanted_device()
    if wanted is not None and wanted not in devices:
        devices.append(wanted)
    return devices


def default_device() -> torch.device:
    """Choose the device to put tensors on: CUDA if there is one, else the CPU.

    The environment variable `MHA_TUTOR_DEVICE` (`cpu`, `cuda`, `cuda:1`, `mps`) overrules this.

    Raises:
        ValueError: `MHA_TUTOR_DEVICE` names a device that is not there.

    Example:
        >>> default_device() in available_devices()
        True
    """
    return _wanted_device() or available_devices()[-1]


def _wanted_device() -> torch.device | None:
    name = os.environ.get(VARIABLE, "")
    if not name:
        return None
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"{VARIABLE} must name a device such as 'cpu', got {name!r}") from None
    if not _is_present(device):
        raise ValueError(f"{VARIABLE} is {name!r}, but this machine has no such device")
    return device


def _is_present(device: torch.device) -> bool:
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"
