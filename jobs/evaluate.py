"""Score a finished run once more.

ray job submit --working-dir . -- python jobs/evaluate.py s3://bucket/runs/NAME
"""

from mtrec_ray import cli

if __name__ == "__main__":
    cli.job(cli.evaluate)
