"""Results of a run that never was: five studies, two methods."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dive.data.generations import write_generations

DATASET = "synthetic-mimic-cxr"
STUDIES = [f"s{number}" for number in range(5)]


def write_run(results: Path, dataset: str = DATASET) -> None:
    """Write references, generations and scores; study s4 scores best, 40 with DIVE and 20 with the zero-shot model."""
    (results / "splits" / dataset).mkdir(parents=True)
    table = {"study_uid": STUDIES, "target": [f"truth {number}" for number in range(5)]}
    pq.write_table(pa.table(table), results / "splits" / dataset / "studies.parquet")
    for method, slope, seeds in (("dive", 10.0, (0, 1)), ("zero_shot", 5.0, (0,))):
        place = Path(dataset, "tiny-gemma3", method)
        for seed in seeds:
            rows = [(uid, "p", f"{method} writes {uid[1:]}\x1b[1m", 3, method == "dive") for uid in STUDIES]
            write_generations(results / "generations" / place / f"seed{seed}.parquet", rows)
        columns = {
            "seed": [seed for seed in seeds for _ in STUDIES],
            "study_uid": STUDIES * len(seeds),
            "rouge_l": [slope * number for number in range(5)] * len(seeds),
            "graph_partial": [slope * number for number in range(5)] * len(seeds),
        }
        (results / "scores" / place).mkdir(parents=True)
        pq.write_table(pa.table(columns), results / "scores" / place / "reports.parquet")
