"""Others' opinion of a release: auditwheel's of the platform, CycloneDX's schema of the bill of materials."""

import contextlib
import io
import re
import sys

from auditwheel.main import main as auditwheel
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


def platform(wheel):
    """The platform tag that the symbols of the wheel's binary are consistent with."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        sys.argv = ["auditwheel", "show", wheel]
        auditwheel()
    found = re.search(r'platform\s+tag:\s+"([^"]+)"', said.getvalue())
    if not found:
        sys.exit(f"auditwheel names no platform: {said.getvalue()}")
    return found.group(1)


def main():
    wheel, bill, expected = sys.argv[1:]
    with open(bill, encoding="utf-8") as file:
        text = file.read()
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    error = validator.validate_str(text)
    if error is not None:
        sys.exit(f"{bill}: {str(error)[:500]}")
    # A check that lets everything pass is none.
    if validator.validate_str(text.replace('"components"', '"components of"')) is None:
        sys.exit("the schema lets a wrong bill of materials pass")
    if expected != platform(wheel):
        sys.exit(f"{wheel}: auditwheel expects {platform(wheel)}")
    print("ok")


main()
