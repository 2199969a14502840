"""Train each task alone and all together, over seeds, and write the report on whether that pays.

ray job submit --working-dir . -- python jobs/compare.py configs/qwen3_8b_zero3.yaml --set name=pays
"""

from mtrec_ray import cli

if __name__ == "__main__":
    cli.job(cli.compare)
