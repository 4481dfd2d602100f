"""Folders as earlier versions of tether wrote them."""

import json
from pathlib import Path


def as_written_before(adapter: Path, *, inside: bool = False) -> Path:
    """Change an adapter folder into one whose head is not listed in its description, and lies beside the folder, as
    of a run, or `inside`, as of a mean; gives the folder."""
    file = adapter / "adapter.json"
    description = json.loads(file.read_text())
    del description["head"]
    description["extra"]["head"] = True
    file.write_text(json.dumps(description))
    if not inside:
        (adapter / "head.safetensors").rename(adapter.with_name("head.safetensors"))
    return adapter
