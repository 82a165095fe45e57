"""Puts standard input into a section of benches/README.md: `COMMAND | python3 benches/record.py SECTION`."""
import re, sys
from pathlib import Path

file, section, result = Path(__file__).parent / "README.md", sys.argv[1], sys.stdin.read().strip()
if not result:
    sys.exit(f"no result for {section}")
print(result)
opening, closing = f"<!-- {section} -->", f"<!-- /{section} -->"
text = file.read_text()
if opening not in text:
    sys.exit(f"benches/README.md has no section {section}")
block = re.compile(re.escape(opening) + ".*?" + re.escape(closing), re.S)
file.write_text(block.sub(lambda _: f"{opening}\n{result}\n{closing}", text))
