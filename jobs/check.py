"""Say what looks too good in logs before a split is trusted; exit code 1 if it is.

ray job submit --working-dir . -- python jobs/check.py configs/qwen3_8b_zero3.yaml
"""

from mtrec_ray import cli

if __name__ == "__main__":
    cli.job(cli.check)
