"""What the two binaries may be built from: one TLS stack, registry sources only, licences that fit Apache-2.0.

The same rules as .deny.toml, for machines without cargo-deny. Prints what breaks one; exit code 1 if anything does.
"""

import re
import subprocess
import sys

ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CDLA-Permissive-2.0", "ISC", "MIT",
    "MIT-0", "Unicode-3.0", "Unlicense", "Zlib", "Apache-2.0 WITH LLVM-exception",
}
# Crate -> why it must not be there.
BANNED = {
    "openssl": "rustls is the one TLS stack",
    "openssl-sys": "rustls is the one TLS stack",
    "native-tls": "rustls is the one TLS stack",
    "async-std": "tokio is the one runtime",
    "rdkafka": "only tests link librdkafka so far",
}
BANNED_ON_EDGE = {"aws-lc-sys": "ring is the smaller provider", "slatedb": "the cloud's engine"}
ONE_VERSION = {"rustls", "tokio", "bytes"}


def packages(binary: str) -> dict[str, set[tuple[str, str]]]:
    """Name -> (version and source, licence) of everything that goes into a binary or its build."""
    command = ["cargo", "tree", "--locked", "--package", binary, "--edges", "normal,build"]
    command += ["--prefix", "none", "--format", "{p}|{l}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, set[tuple[str, str]]] = {}
    for line in output.splitlines():
        package, licence = line.removesuffix(" (*)").split("|")
        name, rest = package.split(" ", 1)
        if not name.startswith("tributary-"):
            found.setdefault(name, set()).add((rest.removesuffix(" (proc-macro)"), licence))
    return found


def is_allowed(licence: str) -> bool:
    """Evaluates an SPDX expression; `/` is the old way to write OR."""
    words = re.findall(r"\(|\)|/|[A-Za-z0-9.\-]+(?: WITH [A-Za-z0-9.\-]+)?", licence)
    joints = {"(": "(", ")": ")", "/": "or", "OR": "or", "AND": "and"}
    expression = " ".join(joints.get(word, str(word in ALLOWED)) for word in words)
    return bool(words) and bool(eval(expression))  # only brackets, and, or, True, False


def problems(binary: str, banned: dict[str, str]) -> list[str]:
    found = packages(binary)
    bad = [f"{binary}: {name}: {why}" for name, why in banned.items() if name in found]
    for name, versions in found.items():
        if name in ONE_VERSION and len(versions) > 1:
            bad.append(f"{binary}: {name} in {len(versions)} versions: {sorted(v for v, _ in versions)}")
        for version, licence in versions:
            if "(" in version:
                bad.append(f"{binary}: {name} {version}: not from the registry")
            if not is_allowed(licence):
                bad.append(f"{binary}: {name} {version}: licence `{licence}` is not on the list")
    return bad


def main() -> int:
    bad = problems("tributary-edge", BANNED | BANNED_ON_EDGE) + problems("tributary-cloud", BANNED)
    for line in bad:
        print(line)
    return 1 if bad else 0


sys.exit(main())
