"""The recorded digests of an architecture, tests/gpu/digests.json.

    python3 tests/gpu/digests.py PATH DIGEST

Runs that are equal to each other may all have moved: so what they say is also
compared with a record. A change of numerics records its digests in the same
commit, and says why. PATH: the names on the way to a digest, for example
sm_90/full_shape/fp8/e5m2. Exit codes: 0; 1 it is another, or is not recorded.
"""

import json
import pathlib
import re
import sys

FILE = pathlib.Path(__file__).parent / "digests.json"


def problem(path, digest, how=None, file=FILE):
    """What is wrong with the digest, in one line; None if it is the recorded one.

    how: what to do to record another, default to write it into the file.
    """
    if not re.fullmatch("[0-9a-f]{64}", digest):
        return f"the digest of {path} is \"{digest}\": the run printed none"
    recorded = json.loads(file.read_text())
    for name in path.split("/"):
        recorded = recorded.get(name) if isinstance(recorded, dict) else None
    how = how or f"write {digest} there"
    if not isinstance(recorded, str):
        return f"{file} has no {path}: {how}, in the commit that makes it so"
    if recorded != digest:
        return (f"{path} is {digest}, but {file} has {recorded}: bits have moved; if "
                f"numerics were meant to change, {how} in the same commit")
    return None


def record(path, digest, file=FILE):
    """Writes the digest into the file."""
    recorded = json.loads(file.read_text())
    *folders, name = path.split("/")
    at = recorded
    for folder in folders:
        at = at.setdefault(folder, {})
    at[name] = digest
    file.write_text(json.dumps(recorded, indent=2) + "\n")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    path, digest = sys.argv[1:]
    wrong = problem(path, digest)
    print(f"FAILED: {wrong}" if wrong else f"the digest is that of {FILE.name}: {path}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
