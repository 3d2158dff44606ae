# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: every peer beside swin_fast, checked equal before it is timed. Start with `python -m benchmarks.run`."""
