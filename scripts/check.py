"""Run all checks, or those that are named, and say which failed.

python scripts/check.py                         # lint, format, types, tests
python scripts/check.py lint format types live  # live: against other programs and libraries, needs dev
"""

import subprocess
import sys
from pathlib import Path

CHECKS = {
    "lint": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "types": ["mypy"],
    "tests": ["pytest"],
    "live": ["pytest", "-s", "tests/live"],
}
DEFAULT = ("lint", "format", "types", "tests")


def main(names: list[str]) -> int:
    """Run the checks in the order given; 1 if one failed, 2 for a name that is none."""
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        print(f"no such check: {', '.join(unknown)}; choose from {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or DEFAULT:
        print(f"== {name}: {' '.join(CHECKS[name])}", flush=True)
        if subprocess.run([sys.executable, "-m", *CHECKS[name]], cwd=Path(__file__).parent.parent).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
