"""`blyan` as a process of a test, which ends with the test: python -m tests.e2e.pupil train …"""

from __future__ import annotations

from node.cli.blyan import main
from tests.e2e.boxed import end_with_the_test

if __name__ == "__main__":
    end_with_the_test()
    main()
