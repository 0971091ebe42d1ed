"""How is a model fetched from the Hugging Face Hub? Into the Hub's own cache; failing that, it says what to do."""

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils.tqdm import disable_progress_bars

from scheduler_service.supervisor.errors import ServiceError
from scheduler_service.supervisor.folder_growth import report_growth

_TOKENIZER_PATTERNS = ["config.json", "generation_config.json", "tokenizer*", "chat_template*"]
_PATTERNS = [*_TOKENIZER_PATTERNS, "*.safetensors*"]
_STAGE = "downloading from the Hub"


def fetch_snapshot(
    repo_id: str,
    on_progress: Callable[[str, int, int], None],
    revision: str | None = None,
    *,
    with_weights: bool = True,
) -> Path:
    """Give the local directory of a repository's config, tokenizer and, if wanted, safetensors files.

    Args:
        repo_id: such as org/name.
        on_progress: told stage, bytes done and bytes to do.
        revision: branch, tag or commit; None: the main branch.
        with_weights: fetch the safetensors files too.

    Raises:
        ServiceError: it is neither in the cache nor to be had.
    """
    patterns = _PATTERNS if with_weights else _TOKENIZER_PATTERNS

    def download(local_files_only: bool) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                repo_id, revision=revision, allow_patterns=patterns, local_files_only=local_files_only
            )
        )

    return _fetch(repo_id, revision, patterns, download, on_progress)


def fetch_file(
    repo_id: str, file_name: str, on_progress: Callable[[str, int, int], None], revision: str | None = None
) -> Path:
    """Give the local copy of one file of a repository.

    Raises:
        ServiceError: it is neither in the cache nor to be had.
    """

    def download(local_files_only: bool) -> Path:
        return Path(
            huggingface_hub.hf_hub_download(repo_id, file_name, revision=revision, local_files_only=local_files_only)
        )

    return _fetch(repo_id, revision, [file_name], download, on_progress)


def _fetch(
    repo_id: str,
    revision: str | None,
    patterns: list[str],
    download: Callable[[bool], Path],
    on_progress: Callable[[str, int, int], None],
) -> Path:
    disable_progress_bars()
    try:
        total_bytes = _total_bytes(repo_id, revision, patterns)
        folder = Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}" / "blobs"
        with report_growth(folder, total_bytes, lambda done, total: on_progress(_STAGE, done, total)):
            return download(False)
    except Exception as error:
        return _from_cache(repo_id, download, error)


def _total_bytes(repo_id: str, revision: str | None, patterns: list[str]) -> int:
    files = huggingface_hub.HfApi().model_info(repo_id, revision=revision, files_metadata=True).siblings or []
    sizes = [f.size or 0 for f in files if any(fnmatch(f.rfilename, pattern) for pattern in patterns)]
    if not sizes:
        raise FileNotFoundError(f"the repository has none of {', '.join(patterns)}")
    return sum(sizes)


def _from_cache(repo_id: str, download: Callable[[bool], Path], online_error: Exception) -> Path:
    try:
        return download(True)
    except Exception:
        reason = (str(online_error).strip() or type(online_error).__name__).splitlines()[0]
        raise ServiceError(
            f"cannot fetch {repo_id} from the Hub and it is not in the local cache: {reason}; check the id, the "
            "network and HF_TOKEN, or copy the model's files here and give their directory as --model"
        ) from online_error
