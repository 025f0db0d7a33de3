"""Which device the notebooks compute on, and how they draw and print alike on all of them."""

import os
import sys

import torch

__all__ = ["available_devices", "default_device", "draw", "set_printing"]

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


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Draw standard normal numbers that are the same on every device.

    They are drawn on the CPU, from a generator of their own, and handed over on torch's default
    device. Several tensors at once: `query, key, value = draw(3, B, H, L, D, seed=0)`.

    Args:
        shape: of the result.
        seed: of the generator; the same seed, shape and dtype give the same numbers.
        dtype: of the result.

    Example:
        >>> draw(2, 3, seed=0).shape
        torch.Size([2, 3])
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randn(shape, generator=generator, dtype=dtype, device="cpu")
    return drawn.to(torch.get_default_device())


def set_printing(precision: int = 2) -> None:
    """Print tensors with `precision` digits and, as a cell's last line, alike on every device.

    In Jupyter a tensor that ends a cell is shown without its device and its `grad_fn`. `print`
    itself is torch's: print what `.tolist()`, `.item()` or `.shape` gives.

    Args:
        precision: digits after the point.

    Example:
        >>> set_printing(precision=2)
        >>> torch.tensor([2 / 3, 1000.0])
        tensor([   0.67, 1000.00])
        >>> torch.set_printoptions(profile="default")
    """
    torch.set_printoptions(precision=precision, sci_mode=False)
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None:
        plain = shell.display_formatter.formatters["text/plain"]
        plain.for_type(torch.Tensor, lambda t, printer, cycle: printer.text(repr(t.detach().cpu())))
