"""Encode logs into requests; the same inputs and settings only once.

ray job submit --working-dir . -- python jobs/prepare.py configs/qwen3_8b_zero3.yaml
"""

from mtrec_ray import cli

if __name__ == "__main__":
    cli.job(cli.prepare)
