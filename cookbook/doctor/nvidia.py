"""Why torch does not use an NVIDIA GPU, and how well it uses one (lesson 01)."""

from __future__ import annotations

from collections.abc import Iterator

from cookbook.doctor.compatibility import OLDEST_BRANCH, TOOLKIT_DRIVER, code_for, driver_fit, numbers, wheel_for
from cookbook.doctor.finding import Finding, Level, fine, note, problem, reinstall
from cookbook.probe import Probe


def is_present(probe: Probe) -> bool:
    """Say whether there is an NVIDIA GPU; where nobody counts them, whether its driver or its program is there."""
    if probe.nvidia_devices is None:
        return probe.nvidia_driver or bool(probe.nvidia_smi_error)
    return probe.nvidia_devices > 0


def why_unused(probe: Probe) -> Iterator[Finding]:
    """Yield every reason for which torch finds none of the NVIDIA GPUs."""
    if probe.cuda_build is None:
        kind = f"for ROCm {probe.rocm_build}" if probe.rocm_build else "for the CPU only"
        yield problem(
            "device",
            f"The GPU is NVIDIA's, but this torch was built {kind}.",
            f"Run {reinstall()}, or choose a build on pytorch.org.",
        )
    if not probe.nvidia_driver:
        yield _without_driver(probe)
        return
    if probe.cuda_build is None:
        return
    causes = [*_driver(probe), *without_code(probe), *hidden(probe), *_mode(probe)]
    said = f" torch says: {probe.accelerator_error}" if probe.accelerator_error else ""
    yield from causes or [
        problem(
            "device",
            f"GPU and driver are there, but torch, built for CUDA {probe.cuda_build}, finds no device.{said}",
            "Run 'nvidia-smi': when it shows no error, run 'sudo nvidia-modprobe -u -c=0' or restart the machine.",
        )
    ]


def _without_driver(probe: Probe) -> Finding:
    if probe.nouveau:
        message = "The NVIDIA GPU runs under the driver nouveau, which knows no CUDA."
    elif probe.wsl:
        message = f"Windows does not pass its NVIDIA GPU on to this Linux. nvidia-smi says: {probe.nvidia_smi_error}"
    else:
        message = "There is an NVIDIA GPU, but no driver for it."
    container = "" if probe.wsl else "; a container needs 'docker run --gpus all'"
    return problem("device", message, f"{_install_driver(probe)}{container}.")


def _install_driver(probe: Probe, version: str = "") -> str:
    """Return how to get NVIDIA's driver, in `version` or newer, on this system."""
    driver = f"NVIDIA's driver{f' {version} or newer' if version else ''}"
    if probe.wsl:
        return f"Install {driver} in Windows, none in Linux; then run 'wsl --update' and 'wsl --shutdown' in Windows"
    if probe.system == "Windows":
        return f"Install {driver} from nvidia.com/drivers"
    return f"Install {driver}, on Ubuntu with 'sudo ubuntu-drivers install', and restart"


def _driver(probe: Probe) -> Iterator[Finding]:
    """Yield what is wrong with the driver: halves that do not fit each other, no library, too old, no answer."""
    said = f"{probe.nvidia_smi_error} {probe.accelerator_error}".lower()
    if "mismatch" in said or "unsupported display driver / cuda driver combination" in said:
        yield problem(
            "device",
            f"The loaded driver{_version(probe)} and its library are of different versions, as after an update.",
            "Run 'sudo reboot'; a container must not bring a driver's library of its own.",
        )
    elif not probe.cuda_library:
        yield problem(
            "device",
            f"The driver{_version(probe)} is loaded, but its library libcuda.so.1 cannot be found.",
            "Start the container with 'docker run --gpus all'; outside of one, install the driver again.",
        )
    elif probe.driver_version and probe.cuda_build and driver_fit(probe.driver_version, probe.cuda_build) == "too old":
        oldest = OLDEST_BRANCH[numbers(probe.cuda_build)[0]]
        fits = any(wheel_for(gpu, probe.driver_version) == "cu126" for gpu in _models(probe).values() or [(8, 0)])
        other = f", or run {reinstall('cu126')} for a torch that the present driver runs" if fits else ""
        yield problem(
            "device",
            f"The driver{_version(probe)} is too old: this torch was built for CUDA {probe.cuda_build}, which needs {oldest}.",
            f"{_install_driver(probe, str(oldest))}{other}.",
        )
    elif probe.nvidia_smi_error:
        yield problem(
            "device",
            f"The GPU does not answer. nvidia-smi says: {probe.nvidia_smi_error}",
            "Look for lines with NVRM in 'sudo dmesg', and restart the machine, or the container.",
        )


def _version(probe: Probe) -> str:
    return f" {probe.driver_version}" if probe.driver_version else ""


def hidden(probe: Probe) -> Iterator[Finding]:
    """Yield a problem when a setting hides every GPU, a note when it hides some."""
    setting = probe.settings.get("CUDA_VISIBLE_DEVICES")
    if setting is None:
        return
    if setting.startswith(("GPU-", "MIG-")):
        if not probe.accelerators:
            yield problem(
                "device",
                f"CUDA_VISIBLE_DEVICES={setting} names a GPU that torch does not find.",
                "Run 'nvidia-smi -L' for the names, or 'unset CUDA_VISIBLE_DEVICES'.",
            )
        return
    count = probe.nvidia_devices
    shown = visible(setting, count)
    if not shown:
        numbered = "GPU 0" if count == 1 else f"GPUs 0 to {count - 1}" if count else ""
        known = f"; this machine has {numbered}" if numbered and setting.strip() not in ("", "-1") else ""
        yield problem(
            "device",
            f"CUDA_VISIBLE_DEVICES={setting!r} hides every GPU{known}.",
            "Run 'unset CUDA_VISIBLE_DEVICES', unless you want the CPU.",
        )
    elif count is not None and len(shown) < count and probe.accelerators:
        yield note(
            "device",
            f"CUDA_VISIBLE_DEVICES={setting} shows {len(shown)} of {count} GPUs.",
            "Run 'unset CUDA_VISIBLE_DEVICES' to use them all.",
        )


def visible(setting: str, count: int | None) -> list[int]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES shows, as CUDA reads it: up to the first that does not exist.

    Args:
        setting: numbers with commas between them.
        count: GPUs of the machine; None when it is unknown, which excludes none.

    A number that is given twice hides all (https://docs.nvidia.com/cuda/cuda-programming-guide, environment variables).
    """
    shown: list[int] = []
    for word in setting.split(","):
        if not word.strip().isdecimal() or (count is not None and int(word) >= count):
            break
        if int(word) in shown:
            return []
        shown.append(int(word))
    return shown


def _mode(probe: Probe) -> Iterator[Finding]:
    """Yield a mode of every GPU that lets no further program in."""
    gpus = probe.nvidia_gpus
    if gpus and all(gpu.compute_mode == "Prohibited" for gpu in gpus):
        yield problem("device", "The GPU's compute mode is 'Prohibited'.", "Run 'sudo nvidia-smi -c DEFAULT'.")
    elif gpus and all(gpu.compute_mode.startswith("Exclusive") for gpu in gpus):
        yield problem(
            "device",
            "The GPU's compute mode lets one process in, and another one has it.",
            "Stop the process that 'nvidia-smi' lists, often an older notebook kernel, or run 'sudo nvidia-smi -c DEFAULT'.",
        )
    if gpus and all(gpu.mig for gpu in gpus):
        yield problem(
            "device",
            "The GPU is divided into instances (MIG), and none of them is open to this process.",
            "Run 'nvidia-smi -L' and set CUDA_VISIBLE_DEVICES to an instance's name, which begins with MIG-.",
        )


def without_code(probe: Probe) -> Iterator[Finding]:
    """Yield each model of GPU for which torch has no code: a problem for the first GPU, on which lessons run, else a note."""
    if not probe.architectures or probe.rocm_build:
        return
    models = _models(probe)
    for name, capability in models.items():
        level: Level = "problem" if name == next(iter(models)) else "note"
        code = code_for(capability, probe.architectures)
        spelled = ".".join(map(str, capability))
        other = wheel_for(capability, probe.driver_version)
        remedy = f"Run {reinstall(other)}." if other else "Use the CPU: no build of a supported torch holds code for this GPU."
        if code is None:
            built = " ".join(probe.architectures)
            yield Finding(
                level,
                "device",
                f"{name} has compute capability {spelled}, for which this torch holds no code ({built}).",
                remedy,
            )
        elif code == "ptx" and probe.driver_version and driver_fit(probe.driver_version, str(probe.cuda_build)) == "minor":
            yield Finding(
                level,
                "device",
                f"{name} needs PTX of CUDA {probe.cuda_build}, which driver {probe.driver_version} cannot compile.",
                f"{_install_driver(probe, TOOLKIT_DRIVER[_minor(probe)])}.",
            )


def _models(probe: Probe) -> dict[str, tuple[int, int]]:
    """Return the compute capability by model, of the GPUs that torch lists, else of those that nvidia-smi does."""
    if probe.accelerators:
        return dict(zip(probe.accelerators, probe.capabilities, strict=False))
    return {gpu.name: gpu.capability for gpu in probe.nvidia_gpus if gpu.capability}


def _minor(probe: Probe) -> tuple[int, int]:
    major, minor, *_ = (*numbers(str(probe.cuda_build)), 0)
    return major, minor


def in_use(probe: Probe) -> Iterator[Finding]:
    """Yield what bears on a GPU that torch does use: its driver, its mode, TF32."""
    if probe.driver_version and probe.cuda_build:
        driver = f"{probe.driver_version}, torch built for CUDA {probe.cuda_build}"
        match driver_fit(probe.driver_version, probe.cuda_build):
            case "minor":
                driver += f"; fits by minor-version compatibility, that CUDA's own is {TOOLKIT_DRIVER[_minor(probe)]}"
            case "too old":
                driver += "; fits through NVIDIA's package for forward compatibility"
        yield fine("driver", driver)
    if any(gpu.compute_mode.startswith("Exclusive") for gpu in probe.nvidia_gpus):
        yield note(
            "sharing",
            "The GPU's compute mode lets only one process in: a second notebook finds it busy.",
            "Run 'sudo nvidia-smi -c DEFAULT'.",
        )
    if any(gpu.mig for gpu in probe.nvidia_gpus):
        yield note("sharing", "torch sees one instance (MIG) of a divided GPU: its speed is not the whole GPU's.")
    if probe.cuda_build and max(probe.capabilities, default=(0, 0)) >= (8, 0):
        yield _tf32(probe)


def _tf32(probe: Probe) -> Finding:
    """Say how float32 is computed; TF32 exists from compute capability 8.0 (https://docs.pytorch.org/docs/stable/notes/cuda.html)."""
    if setting := probe.settings.get("NVIDIA_TF32_OVERRIDE"):
        return problem(
            "TF32",
            f"NVIDIA_TF32_OVERRIDE={setting} goes over torch's head: fp32 or tf32 is not what it says.",
            "Run 'unset NVIDIA_TF32_OVERRIDE'.",
        )
    if probe.tf32_products:
        start = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
        unset = f"Run 'unset {start}', or call" if probe.settings.get(start, "0") not in ("", "0") else "Call"
        return note(
            "TF32",
            "on for float32 matrix products, which then keep 10 bits of mantissa instead of 23.",
            f"{unset} torch.set_float32_matmul_precision('highest') for products in full float32.",
        )
    convolutions = "on" if probe.tf32_convolutions else "off"
    return fine("TF32", f"off for matrix products, {convolutions} for convolutions; fit sets both by its precision")
