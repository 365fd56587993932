# SPDX-License-Identifier: GPL-2.0-or-later
"""What a driver may not do is allowed before hmmd comes to refuse it: mirror_late_refusal.py."""

import harness


class LateRefusal(harness.Test):
    def test_allowed_meanwhile(self):
        """Found once in some hundred runs of coherence-protect; a refusal that comes a moment late makes it certain."""
        self.start_daemon("--pool", "memfd-huge", mistake="late-refusal")
        self.spawn("mirror-protection", "allowed-meanwhile").finish()


if __name__ == "__main__":
    harness.main()
