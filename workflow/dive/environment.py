"""Environment variables that every job is started with; one that is set already stays as it is."""

import os

OF_JOBS = {
    # A job asks nothing of the network and tells it nothing; HF_HUB_OFFLINE=0 lets a first run download a backbone.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # glibc gives a tensor's memory back at once and asks for it again at the next: a million page faults in a minute
    # of decoding.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    # Arrow's own allocator keeps five times what a table takes, and glibc's arenas of its threads what they have freed:
    # this way it is there for tensors.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
}


def set_environment() -> None:
    """Set them for this process and those that it starts; libraries read some of them when they are first imported."""
    for name, value in OF_JOBS.items():
        os.environ.setdefault(name, value)
    # torch keeps compiled kernels; its default is a folder in the temporary directory, where nobody would remove it.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.abspath(".snakemake/torchinductor"))


def may_download() -> bool:
    """Whether the user has allowed jobs the network, see ``OF_JOBS``."""
    return os.environ.get("HF_HUB_OFFLINE") == "0"
