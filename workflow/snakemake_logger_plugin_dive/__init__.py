"""Logger plugin of Snakemake: ``snakemake --logger dive`` shows a run on one screen (`dive.screen`)."""

from dive.screen import LogHandler, LogHandlerSettings

__all__ = ["LogHandler", "LogHandlerSettings"]
