"""Checks what this machine can do and prints what is missing, with the command that fixes it: `python -m
tap_ray.doctor`.

A probe is a function that returns what it found or raises. Probes that load third-party libraries run in a process of
their own (`python -m tap_ray.doctor --probe NAME`): if a driver crashes, that is a row of the table and not its end,
and this process imports no library of another package's concern (Ray, MLflow, PyBullet). `importlib` gets literal
names.

Exit status 1 when the default job could not run (a required row is missing), else 0.
"""

import ctypes
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Callable, Sequence

TIMEOUT_S, RAY_TIMEOUT_S = 30.0, 120.0
"""A probe that takes longer counts as missing; one that starts Ray may take longer, s."""
MIN_MESA = (24, 3)
"""First version of Mesa with which ManiSkill's renderer works on the CPU (Debian bookworm has 22.3, its backports
25.0)."""
MIN_DISK_GB, MIN_MEMORY_GB, MIN_SHM_GB = 5.0, 3.0, 1.0
"""Least free disk, memory and shared memory, GB. Without the installation the default pipeline writes < 1 GB and its
processes take about 2 GB; the rest is a margin."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One row of the table."""

    name: str
    run: Callable[[], str]
    """Returns what was found; raises (any exception, with a message) when it is missing."""
    fix: str
    """The command that fixes it."""
    required: bool = True
    """Whether the default job needs it."""
    isolated: bool = False
    """Whether it runs in a process of its own."""
    timeout_s: float = TIMEOUT_S
    """How long that process may take, s."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a probe found."""

    name: str
    ok: bool
    required: bool
    detail: str
    fix: str


def python() -> str:
    if sys.version_info < (3, 11):  # noqa: UP036  a checkout needs no installation to be examined
        raise RuntimeError(f"{sys.version.split()[0]}; 3.11 or newer is needed")
    return f"{sys.version.split()[0]} ({sys.executable})"


def torch() -> str:
    library = import_module("torch")
    if not library.cuda.is_available():
        return f"{library.__version__}, CPU only, {library.get_num_threads()} threads"
    names = {library.cuda.get_device_name(i) for i in range(library.cuda.device_count())}
    return f"{library.__version__}, {library.cuda.device_count()} x {', '.join(sorted(names))}"


def ray() -> str:
    library = import_module("ray")
    for part in ("ray.data", "ray.train", "ray.tune"):
        import_module(part)
    return f"{library.__version__} with data, train, tune"


def local_ray() -> str:
    """Starts a Ray, runs a task and stops it, which tests temporary folder, home, token, memory and proxies."""
    began, connect = time.monotonic(), import_module("tap_ray.distributed.connect").connect
    library = import_module("ray")
    with connect("local", num_cpus=1):
        library.get(library.remote(lambda: None).remote())
    return f"starts, runs a task and stops in {time.monotonic() - began:.0f} s"


def pybullet() -> str:
    """Physics, NumPy support and a real image from the software renderer, which every robot here uses."""
    bullet = import_module("pybullet")
    if not bullet.isNumpyEnabled():
        raise RuntimeError("it was built without NumPy, so each image would be copied pixel by pixel")
    client = bullet.connect(bullet.DIRECT)
    shape = bullet.createVisualShape(bullet.GEOM_BOX, halfExtents=[0.5] * 3, rgbaColor=[1, 0, 0, 1])
    bullet.createMultiBody(baseVisualShapeIndex=shape)
    view = bullet.computeViewMatrix([2, 2, 2], [0, 0, 0], [0, 0, 1])
    lens = bullet.computeProjectionMatrixFOV(60, 1.0, 0.1, 10)
    pixels = bullet.getCameraImage(16, 16, view, lens, renderer=bullet.ER_TINY_RENDERER)[2]
    bullet.disconnect(client)
    red = int((pixels[..., 0].astype(int) - pixels[..., 1] > 50).sum())
    if red == 0:
        raise RuntimeError("TinyRenderer drew a 16x16 image without the red box in it")
    return f"connects, NumPy enabled; TinyRenderer drew a box ({red} of 256 pixels)"


def egl() -> str:
    library = ctypes.CDLL("libEGL.so.1")
    library.eglGetPlatformDisplay.restype = ctypes.c_void_p
    major, minor = ctypes.c_int(), ctypes.c_int()
    # Without a screen: EGL_PLATFORM_SURFACELESS_MESA, EGL_PLATFORM_DEVICE_EXT (NVIDIA).
    for kind in (0x31DD, 0x313F):
        display = ctypes.c_void_p(library.eglGetPlatformDisplay(kind, None, None))
        if display and library.eglInitialize(display, ctypes.byref(major), ctypes.byref(minor)):
            return f"EGL {major.value}.{minor.value}, works without a screen"
    raise RuntimeError("libEGL.so.1 exists, but no driver works without a screen")


def vulkan() -> str:
    """Loader, its version, and the devices its drivers (ICDs) offer: ManiSkill's cameras need one."""
    loader = ctypes.CDLL("libvulkan.so.1")
    version = ctypes.c_uint32()
    loader.vkEnumerateInstanceVersion(ctypes.byref(version))
    found = f"loader {_vulkan_version(version.value)}"
    # VkApplicationInfo (48 bytes, the last four: Vulkan 1.1) and VkInstanceCreateInfo (64 bytes, type 1, the former).
    application = (ctypes.c_uint64 * 6)(0, 0, 0, 0, 0, (1 << 22 | 1 << 12) << 32)
    info = (ctypes.c_uint64 * 8)(1, 0, 0, ctypes.addressof(application))
    instance, count = ctypes.c_void_p(), ctypes.c_uint32()
    if loader.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance)) != 0:
        raise RuntimeError(f"{found}, but no driver (ICD) works with it")
    loader.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    devices = (ctypes.c_void_p * count.value)()
    loader.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)
    if count.value == 0:
        raise RuntimeError(f"{found}, but no device")
    described = [_vulkan_device(loader, device) for device in devices]
    if all(too_old(driver) for _, driver in described):
        raise RuntimeError(f"{found}; {described[0][1]}: Mesa {'.'.join(map(str, MIN_MESA))} or newer is needed")
    return f"{found}; " + "; ".join(f"{name}, {driver}" for name, driver in described)


def maniskill() -> str:
    # Loading all of it takes 10 s: presence is enough here.
    from importlib.metadata import version

    return f"{version('mani-skill')}, sapien {version('sapien')}"


def simpler_assets() -> str:
    """Checks that ManiSkill can be imported (it needs libGL), and that the files of SIMPLER's WidowX tasks are where it
    looks for them."""
    import_module("cv2")
    data = import_module("mani_skill.utils.assets.data")
    folder = import_module("mani_skill").ASSET_DIR
    data.initialize_data_sources()
    missing = [name for name in ("bridge_v2_real2sim", "widowx250s") if not data.is_data_source_downloaded(name)]
    if missing:
        raise RuntimeError(f"{' and '.join(missing)} are not in {folder} (set MS_ASSET_DIR for another folder)")
    return f"SIMPLER's tasks and the WidowX in {folder}"


def disk() -> str:
    free = shutil.disk_usage(".").free / 1e9
    return require_amount(free, MIN_DISK_GB, f"GB free in {Path.cwd()}")


def shared_memory() -> str:
    if not Path("/dev/shm").exists():
        raise RuntimeError("there is no /dev/shm, so Ray keeps its objects on disk, which is several times slower")
    return require_amount(shutil.disk_usage("/dev/shm").free / 1e9, MIN_SHM_GB, "GB free in /dev/shm")


def memory() -> str:
    free = import_module("psutil").virtual_memory().available / 1e9
    return require_amount(free, MIN_MEMORY_GB, "GB available")


def cores() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if usable < 2:
        raise RuntimeError("there is 1 core: everything works, but robots and training take turns")
    return f"{usable} usable"


def large_pages(setting: Path = Path("/sys/kernel/mm/transparent_hugepage/enabled")) -> str:
    """Whether memory may come in pages of 2 MB, and whether this machine's malloc can ask for them (glibc 2.35)."""
    mode = re.search(r"\[(\w+)\]", setting.read_text()) if setting.exists() else None
    if mode is None or mode[1] == "never":
        raise RuntimeError(f"{setting}: {mode[1] if mode else 'missing'}; training on a CPU takes up to twice as long")
    name, version = platform.libc_ver()
    if mode[1] != "always" and (name != "glibc" or [*map(int, version.split("."))] < [2, 35]):
        raise RuntimeError(f"malloc of {name or 'no glibc'} {version} cannot ask for them; glibc 2.35 can")
    return f"{mode[1]}; {name} {version}"


def mlflow() -> str:
    from tap_ray.tracking import require_reachable, tracking_uri

    uri = tracking_uri()
    require_reachable(uri)
    return f"{import_module('mlflow').__version__}, tracking at {uri}"


def ray_auth() -> str:
    """Ray >= 2.59 turns token authentication on for a local cluster by itself and makes a token when there is none.

    Source: ray/_private/authentication/authentication_token_setup.py of 2.60.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None and mode.lower() != "token":
        raise RuntimeError(f"RAY_AUTH_MODE={mode}: everyone who can reach the cluster's ports can run code on it")
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "token in RAY_AUTH_TOKEN"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if path.exists():
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise RuntimeError(f"{path} can be read by other users of this machine")
        return f"token in {path}"
    if "RAY_AUTH_TOKEN_PATH" in os.environ:
        raise RuntimeError(f"RAY_AUTH_TOKEN_PATH names {path}, which does not exist")
    return "on; Ray makes a token when it first starts (for a cluster: ray get-auth-token --generate)"


def ffmpeg() -> str:
    binary = import_module("imageio_ffmpeg").get_ffmpeg_exe()
    encoders = subprocess.run([binary, "-hide_banner", "-encoders"], capture_output=True, text=True, timeout=20).stdout
    if "libx264" not in encoders:
        raise RuntimeError(f"{binary} has no H.264 encoder (libx264)")
    return f"H.264 through {Path(binary).name}"


INSTALL = "make install"
PROBES = (
    Probe(name="Python", run=python, fix="apt-get install -y python3.11-venv; rm -rf .venv; make install"),
    Probe(name="torch", run=torch, fix=INSTALL, isolated=True),
    Probe(name="Ray", run=ray, fix=INSTALL, isolated=True),
    Probe(
        name="Ray starts",
        run=local_ray,
        fix="follow the message, or read /tmp/ray/session_latest/logs",
        isolated=True,
        timeout_s=RAY_TIMEOUT_S,
    ),
    Probe(
        name="Ray authentication", run=ray_auth, fix="unset RAY_AUTH_MODE; chmod 600 ~/.ray/auth_token", required=False
    ),
    Probe(name="PyBullet", run=pybullet, fix=INSTALL, isolated=True),
    Probe(name="ffmpeg", run=ffmpeg, fix="pip install --force-reinstall imageio-ffmpeg", isolated=True),
    Probe(name="MLflow", run=mlflow, fix="unset MLFLOW_TRACKING_URI (or make install)", isolated=True),
    Probe(name="disk", run=disk, fix="df -h . # then delete something, or work in another folder"),
    Probe(name="memory", run=memory, fix="ps aux --sort=-rss | head # then end something"),
    Probe(
        name="shared memory",
        run=shared_memory,
        fix="mount -o remount,size=2G /dev/shm (docker: --shm-size=2g)",
        required=False,
    ),
    Probe(name="cores", run=cores, fix="a machine with two cores or more", required=False),
    Probe(
        name="large pages",
        run=large_pages,
        fix="echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled; or a newer distribution",
        required=False,
    ),
    Probe(name="EGL", run=egl, fix="apt-get install -y libegl1 libegl-mesa0", required=False, isolated=True),
    Probe(name="ManiSkill", run=maniskill, fix=INSTALL, required=False),
    Probe(
        name="ManiSkill assets",
        run=simpler_assets,
        fix="python -m mani_skill.utils.download_asset bridge_v2_real2sim -y; "
        "python -m mani_skill.utils.download_asset widowx250s -y (libGL, libgthread: apt-get install -y libgl1 "
        "libglib2.0-0)",
        required=False,
        isolated=True,
    ),
    Probe(
        name="Vulkan",
        run=vulkan,
        fix="apt-get install -y libvulkan1 mesa-vulkan-drivers (Debian bookworm: -t bookworm-backports; or the GPU's "
        "own driver)",
        required=False,
        isolated=True,
    ),
)
"""Optional rows: EGL, ManiSkill, its assets and Vulkan serve only `--sim maniskill`; others cost speed or safety."""


def examine(probes: Sequence[Probe]) -> list[Row]:
    """Run all probes, as many at a time as there are cores, and return their rows in order."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(_row, probes))


def table(rows: Sequence[Row]) -> str:
    """The rows as text; a row that is missing is followed by the command that fixes it."""
    width = max(len(row.name) for row in rows)
    lines = []
    for row in rows:
        state = "ok      " if row.ok else "missing " if row.required else "optional"
        lines.append(f"{state}  {row.name:<{width}}  {row.detail}")
        if not row.ok:
            lines.append(f"{'':10}{'':{width}}  -> {row.fix}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    if len(argv) == 2 and argv[0] == "--probe":
        print(next(probe for probe in PROBES if probe.name == argv[1]).run())
        return 0
    if argv:
        print(f"usage: python -m tap_ray.doctor (it takes no arguments; got {' '.join(argv)})", file=sys.stderr)
        return 2
    rows = examine(PROBES)
    print(table(rows))
    lacking = [row.name for row in rows if row.required and not row.ok]
    print(f"\nThe default job cannot run without: {', '.join(lacking)}." if lacking else "\nThe default job can run.")
    return 1 if lacking else 0


def _row(probe: Probe) -> Row:
    ok, detail = run_in_own_process(probe) if probe.isolated else _here(probe)
    return Row(name=probe.name, ok=ok, required=probe.required, detail=detail, fix=probe.fix)


def _here(probe: Probe) -> tuple[bool, str]:
    try:
        return True, probe.run()
    except Exception as error:  # noqa: BLE001  whatever a probe raises is what the row says
        return False, str(error) or type(error).__name__


def run_in_own_process(probe: Probe) -> tuple[bool, str]:
    """Whether a probe succeeded in a process of its own, and what it found or why it failed."""
    command = [sys.executable, "-W", "ignore", "-m", "tap_ray.doctor", "--probe", probe.name]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=probe.timeout_s)
    except subprocess.TimeoutExpired:
        return False, f"no answer within {probe.timeout_s:g} s"
    if result.returncode < 0:
        return False, f"crashed (signal {-result.returncode})"
    text = (result.stdout if result.returncode == 0 else result.stderr).strip()
    return result.returncode == 0, text.splitlines()[-1] if text else f"exit status {result.returncode}"


def require_amount(have: float, need: float, unit: str) -> str:
    """The amount as text; raises a RuntimeError if it is less than needed."""
    if have < need:
        raise RuntimeError(f"{have:.1f} {unit}; {need:g} are needed")
    return f"{have:.1f} {unit}"


def _vulkan_version(packed: int) -> str:
    return f"{packed >> 22 & 0x7F}.{packed >> 12 & 0x3FF}.{packed & 0xFFF}"


def _vulkan_device(loader: ctypes.CDLL, device: int) -> tuple[str, str]:
    """A device's name, and its driver's description of itself, e.g. "Mesa 25.0.7 (LLVM 15.0.6)".

    VkPhysicalDeviceProperties2: type, next, 5 uint32, then the name; next is VkPhysicalDeviceDriverProperties: type,
    next, a number, the driver's name and its words, 256 bytes each.
    """
    driver, properties = ctypes.create_string_buffer(1024), ctypes.create_string_buffer(2048)
    driver[:4] = (1000196000).to_bytes(4, sys.byteorder)
    properties[:4] = (1000059001).to_bytes(4, sys.byteorder)
    properties[8:16] = ctypes.addressof(driver).to_bytes(8, sys.byteorder)
    loader.vkGetPhysicalDeviceProperties2(ctypes.c_void_p(device), properties)
    return _text(properties.raw[36:292]), _text(driver.raw[276:532])


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode(errors="replace")


def too_old(driver: str) -> bool:
    """Whether this description is that of a Mesa driver older than MIN_MESA; drivers of other vendors are not known to
    fail."""
    found = re.match(r"Mesa (\d+)\.(\d+)", driver)
    return found is not None and (int(found[1]), int(found[2])) < MIN_MESA


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
