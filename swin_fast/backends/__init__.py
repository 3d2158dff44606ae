# SPDX-License-Identifier: Apache-2.0
"""The backends of the op table: each module loads or implements one way of computing the ops in `swin_fast.ops`."""
