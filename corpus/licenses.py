"""Licence expressions that a dataset may carry: SPDX identifiers in common use, and how they
combine (SPDX specification 2.3, annex D). Bundled, so that every node decides alike.
"""

from __future__ import annotations

import re

from chain import limits
from chain.errors import InputError

_IDENTIFIERS = """
    0BSD AFL-3.0 AGPL-3.0-only AGPL-3.0-or-later Apache-1.1 Apache-2.0 APSL-2.0 Artistic-1.0
    Artistic-1.0-Perl Artistic-2.0 Beerware BlueOak-1.0.0 BSD-1-Clause BSD-2-Clause
    BSD-2-Clause-Patent BSD-3-Clause BSD-3-Clause-Clear BSD-4-Clause BSL-1.0 bzip2-1.0.6 CC-BY-2.0
    CC-BY-2.5 CC-BY-3.0 CC-BY-4.0 CC-BY-NC-4.0 CC-BY-NC-SA-4.0 CC-BY-ND-4.0 CC-BY-SA-2.0
    CC-BY-SA-2.5 CC-BY-SA-3.0 CC-BY-SA-4.0 CC-PDDC CC0-1.0 CDDL-1.0 CDDL-1.1 CDLA-Permissive-1.0
    CDLA-Permissive-2.0 CDLA-Sharing-1.0 CECILL-2.1 CNRI-Python CPL-1.0 curl ECL-2.0 EFL-2.0
    EPL-1.0 EPL-2.0 EUPL-1.1 EUPL-1.2 FSFAP FTL GFDL-1.1-only GFDL-1.1-or-later GFDL-1.2-only
    GFDL-1.2-or-later GFDL-1.3-only GFDL-1.3-or-later GPL-1.0-only GPL-1.0-or-later GPL-2.0-only
    GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later HPND ICU IJG Intel IPL-1.0 ISC JSON
    LGPL-2.0-only LGPL-2.0-or-later LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0-only
    LGPL-3.0-or-later Libpng libtiff LPL-1.02 LPPL-1.3c MIT MIT-0 MIT-CMU MPL-1.0 MPL-1.1 MPL-2.0
    MPL-2.0-no-copyleft-exception MS-PL MS-RL MulanPSL-2.0 NAIST-2003 NCSA NTP OFL-1.0 OFL-1.1
    OGL-UK-3.0 ODbL-1.0 ODC-By-1.0 OLDAP-2.8 OpenSSL OSL-3.0 PDDL-1.0 PHP-3.01 PostgreSQL PSF-2.0
    Python-2.0 Python-2.0.1 QPL-1.0 Ruby SISSL Sleepycat SMLNJ SPL-1.0 TCL Unicode-3.0
    Unicode-DFS-2016 Unlicense UPL-1.0 Vim W3C WTFPL X11 Xnet Zend-2.0 Zlib ZPL-2.1
    """
_EXCEPTIONS = """
    Autoconf-exception-3.0 Bison-exception-2.2 Bootloader-exception Classpath-exception-2.0
    Font-exception-2.0 GCC-exception-3.1 GPL-3.0-linking-exception LGPL-3.0-linking-exception
    Linux-syscall-note LLVM-exception OpenJDK-assembly-exception-1.0 Qt-LGPL-exception-1.1
    """
LICENSES = frozenset(_IDENTIFIERS.split())
EXCEPTIONS = frozenset(_EXCEPTIONS.split())
OWN = re.compile(r"LicenseRef-[A-Za-z0-9.-]+")  # a licence outside the list, by SPDX's form for it


def check_license(expression: str) -> None:
    """Raise InputError unless `expression` is an SPDX expression over the bundled identifiers."""
    if not 0 < len(expression.encode()) <= limits.MAX_LICENSE:
        raise InputError(
            f"licence: expected an SPDX expression of at most {limits.MAX_LICENSE} bytes, such as "
            "CC-BY-4.0 or MIT"
        )
    tokens = expression.replace("(", " ( ").replace(")", " ) ").split()
    rest = _expression(tokens, expression)
    if rest:
        raise _refused(expression, rest[0])


def _expression(tokens: list[str], whole: str) -> list[str]:
    """Consume term ((AND|OR) term)*; what is left comes back."""
    tokens = _term(tokens, whole)
    while tokens and tokens[0] in ("AND", "OR"):
        tokens = _term(tokens[1:], whole)
    return tokens


def _term(tokens: list[str], whole: str) -> list[str]:
    if tokens and tokens[0] == "(":
        rest = _expression(tokens[1:], whole)
        if not rest or rest[0] != ")":
            raise _refused(whole, rest[0] if rest else "its end")
        return rest[1:]
    if not tokens or not _known(tokens[0]):
        raise _refused(whole, tokens[0] if tokens else "its end")
    if len(tokens) > 1 and tokens[1] == "WITH":
        if len(tokens) < 3 or tokens[2] not in EXCEPTIONS:
            raise _refused(whole, tokens[2] if len(tokens) > 2 else "its end")
        return tokens[3:]
    return tokens[1:]


def _known(identifier: str) -> bool:
    return identifier.removesuffix("+") in LICENSES or OWN.fullmatch(identifier) is not None


def _refused(expression: str, at: str) -> InputError:
    close = sorted(name for name in LICENSES if at and name.lower().startswith(at.lower()[:4]))
    hint = f"; did you mean {', '.join(close[:4])}?" if close else ""
    return InputError(
        f"licence {expression!r}: {at!r} is not known here; expected an SPDX expression such as "
        f"MIT, CC-BY-SA-4.0 or 'Apache-2.0 WITH LLVM-exception'{hint}"
    )
