"""Prepare if need be, train, evaluate, write the report.

ray job submit --working-dir . -- python jobs/train.py configs/qwen3_8b_zero3.yaml
"""

from mtrec_ray import cli

if __name__ == "__main__":
    cli.job(cli.train)
