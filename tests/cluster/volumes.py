"""What do a pod's volumes hold? A folder for each, made and filled as the kubelet does."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.chart import Manifest

_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_ANYBODY = 0o2777


@dataclass(frozen=True, slots=True)
class Stores:
    """What volumes are filled from.

    Attributes:
        secrets: a folder with a file per key, by the secret's name.
        claims: what is on a persistent volume, by the claim's name.
        brought: what the image would have brought, by the name of the volume that it lies in here.
    """

    secrets: Mapping[str, Path] = field(default_factory=dict)
    claims: Mapping[str, Path] = field(default_factory=dict)
    brought: Mapping[str, Path] = field(default_factory=dict)


class Volumes:
    """The folders of one pod's volumes, by name, until `remove`."""

    def __init__(self, pod: Manifest, folder: Path, stores: Stores) -> None:
        self._folder = folder
        self._stores = stores
        self._group = pod["spec"].get("securityContext", {}).get("fsGroup", 0)
        self._mounted: list[Path] = []
        self.paths = {volume["name"]: self._make(volume) for volume in pod["spec"].get("volumes", [])}

    def remove(self) -> None:
        """Take them away, with all that is in them."""
        for path in self._mounted:
            subprocess.run(["umount", str(path)], check=True)
        with suppress(FileNotFoundError):
            shutil.rmtree(self._folder)

    def _make(self, volume: Manifest) -> Path:
        if "persistentVolumeClaim" in volume:
            return self._stores.claims[volume["persistentVolumeClaim"]["claimName"]]
        path = self._folder / volume["name"]
        path.mkdir(parents=True)
        if "emptyDir" in volume:
            self._make_empty(path, volume["emptyDir"])
        elif "secret" in volume:
            self._fill(path, volume["secret"])
        else:
            raise ValueError(f"volume {volume['name']} is of a kind that this cluster does not have: {volume}")
        return path

    def _make_empty(self, path: Path, settings: Manifest) -> None:
        if settings.get("medium") == "Memory":
            size = f"size={_num_bytes(settings['sizeLimit'])}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(path)], check=True)
            self._mounted.append(path)
        brought = self._stores.brought.get(path.name)
        if brought is not None:
            shutil.copytree(brought, path, dirs_exist_ok=True)
        for found in (path, *path.rglob("*")):
            os.chown(found, 0, self._group)
            found.chmod(_ANYBODY if found.is_dir() else 0o664)

    def _fill(self, path: Path, secret: Manifest) -> None:
        source = self._stores.secrets[secret["secretName"]]
        items = secret.get("items") or [{"key": file.name, "path": file.name} for file in source.iterdir()]
        for item in items:
            target = path / item["path"]
            target.write_bytes((source / item["key"]).read_bytes())
            os.chown(target, 0, self._group)
            target.chmod(item.get("mode", secret.get("defaultMode", 0o644)))


def _num_bytes(quantity: str) -> int:
    number, unit = quantity[:-2], quantity[-2:]
    return int(number) * _UNITS[unit]
