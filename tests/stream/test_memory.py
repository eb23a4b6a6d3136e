from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

READ = """
import json, sys
from pathlib import Path
from planaria.job import StreamSettings
from planaria.stream import open_stream

def resident_mib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024

settings = StreamSettings.model_validate({
    "source": "parquet", "path": sys.argv[1], "target": "y",
    "features": {"numeric": ["x0", "x1", "x2", "x3"], "categorical": ["c"]},
})
stream = open_stream(settings, seed=0, base=Path("/"), hold_out_fraction=0.02)
idle, start, marks = resident_mib(), 0, []
while len(rows := stream.read(start, 256)):
    rows.select(slice(None))
    start += len(rows)
    if start // 256 % 500 == 0:
        marks.append(resident_mib() - idle)
print(json.dumps({"rows": start, "marks": marks}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_million_rows_are_read_in_flat_memory(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / "large.parquet"
    columns = {f"x{number}": random.standard_normal(1_000_000).astype(np.float32) for number in range(4)}
    columns |= {"c": random.integers(0, 5, 1_000_000), "y": random.integers(0, 3, 1_000_000)}
    table = pa.table(columns)
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(2):
            writer.write_table(table, row_group_size=1_000_000)
    read = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    result = json.loads(read.stdout)
    assert result["rows"] == 2_000_000
    assert max(result["marks"]) < 100, "MiB above the idle process"
    assert result["marks"][-1] - result["marks"][len(result["marks"]) // 2] < 10, "MiB grown in the second half"
