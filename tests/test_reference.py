"""docs/reference.md is what the code says."""

import runpy
from pathlib import Path

BUILDER = Path(__file__).resolve().parent.parent / "docs" / "build_reference.py"


def test_the_reference_is_that_of_the_code():
    built = runpy.run_path(str(BUILDER))["reference"]()
    assert BUILDER.with_name("reference.md").read_text(encoding="utf-8") == built, (
        "run: python docs/build_reference.py")
    assert built.count("\n### `congrad ") >= 6
    assert "`--max-length` `N` | `1024`" in built
