"""What does a container see as its file system, and with which rights does it run?

No image is built: this machine's programs, the Python environment of the tests and the project's own files stand in for
what is in it. All of them can only be read, and nothing else is there but the volumes that the container mounts.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cluster.network import NODE_ADDRESS
from tests.fakes.chart import Manifest
from tests.fakes.dockerfile import ROOT, read_stages

_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/usr")
_ETC = ("ssl", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_USER = "pagewire:x:10001:10001::/var/cache/pagewire:/sbin/nologin"


def image_environment() -> dict[str, str]:
    """The variables that the Dockerfile gives every image, with places of this machine in the search paths."""
    (line,) = read_stages()["base"].of("ENV")
    environment = dict(part.partition("=")[::2] for part in line.split())
    places = [ROOT / "proto", ROOT / "client", ROOT]
    environment["PATH"] = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin"
    return {**environment, "PYTHONPATH": ":".join(map(str, places))}


def start_script(
    root: Path,
    name: str,
    address: str,
    search: Sequence[str],
    mounts: Sequence[tuple[Path, str, bool]],
    container: Manifest,
    pod: Manifest,
) -> str:
    """What makes the file system, in mount, process and host name namespaces, and then becomes the container.

    Its own arguments are the environment, as env(1) takes it, and the command.

    Args:
        root: an empty folder.
        name: of the host.
        address: of the pod.
        search: domains in which names are looked up.
        mounts: folder, where in the container, whether it can only be read.
        container: whose security context is obeyed: its user, groups and capabilities.
        pod: that it belongs to.
    """
    security = {**pod["spec"].get("securityContext", {}), **container.get("securityContext", {})}
    lines = [["mount", "-t", "tmpfs", "-o", "mode=755", "none", str(root)], *_system(root), *_kernel(root)]
    etc = {
        "passwd": f"root:x:0:0::/:/bin/sh\n{_USER}",
        "group": "root:x:0:\npagewire:x:10001:",
        "nsswitch.conf": "hosts: files dns",
        "hosts": f"127.0.0.1 localhost\n{address} {name}",
        "resolv.conf": f"nameserver {NODE_ADDRESS}\nsearch {' '.join(search)}\noptions ndots:5",
    }
    script = [shlex.join(line) for line in lines]
    script += [f"printf '%s\\n' {shlex.quote(text)} >{root}/etc/{file}" for file, text in etc.items()]
    for folder, place, read_only in sorted(mounts, key=lambda mount: mount[1]):
        script.append(shlex.join(["mkdir", "-p", f"{root}{place}"]))
        script.append(shlex.join(["mount", "-o", "bind,ro" if read_only else "bind", str(folder), f"{root}{place}"]))
    if security.get("readOnlyRootFilesystem"):
        script.append(shlex.join(["mount", "-o", "remount,ro", str(root)]))
    script.append(f"echo {shlex.quote(name)} >/proc/sys/kernel/hostname")
    script.append(f'exec chroot {root} setpriv {shlex.join(_rights(security))} env -i -C / "$@"')
    return "\n".join(script)


def expand(text: str, environment: Mapping[str, str]) -> str:
    """A command's part with its $(NAME), as the kubelet does it."""
    for name, value in environment.items():
        text = text.replace(f"$({name})", value)
    return text


def _system(root: Path) -> list[list[str]]:
    folders = ("etc", "dev", "proc", "sys", "tmp", "models", "run/pagewire", "var/cache/pagewire")
    lines = [["mkdir", "-p", *(f"{root}/{folder}" for folder in folders)]]
    python = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT}
    etc = [path for name in _ETC if (path := Path("/etc", name)).exists()]
    seen: list[Path] = []
    for path in [*map(Path, _SYSTEM), *sorted(python), *etc]:
        if path.is_symlink():
            lines.append(["cp", "-P", str(path), f"{root}{path}"])
        elif path.exists() and not any(path.is_relative_to(other) for other in seen):
            lines += _bind(root, path)
            seen.append(path)
    return lines


def _bind(root: Path, path: Path) -> list[list[str]]:
    place = f"{root}{path}"
    made = ["mkdir", "-p", place] if path.is_dir() else ["touch", place]
    return [made, ["mount", "-o", "bind,ro", str(path), place]]


def _kernel(root: Path) -> list[list[str]]:
    lines = [
        ["mount", "-t", "proc", "proc", f"{root}/proc"],
        ["mount", "--rbind", "/sys", f"{root}/sys"],
        ["mkdir", f"{root}/dev/shm"],
    ]
    for name in _DEVICES:
        lines += [["touch", f"{root}/dev/{name}"], ["mount", "--bind", f"/dev/{name}", f"{root}/dev/{name}"]]
    return lines


def _rights(security: Manifest) -> list[str]:
    user, group = str(security.get("runAsUser", 0)), str(security.get("runAsGroup", 0))
    rights = ["--reuid", user, "--regid", group, "--groups", str(security.get("fsGroup", group))]
    if security.get("capabilities", {}).get("drop") == ["ALL"]:
        rights += ["--inh-caps=-all", "--bounding-set=-all"]
    if security.get("allowPrivilegeEscalation") is False:
        rights.append("--no-new-privs")
    return rights
