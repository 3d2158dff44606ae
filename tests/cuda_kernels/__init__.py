# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels as their tests see them, one module a header: mistakes to plant, and instances to compile."""
