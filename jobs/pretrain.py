"""Pretrain the backbone on the text of the train period.

ray job submit --working-dir . -- python jobs/pretrain.py configs/qwen3_8b_zero3.yaml
"""

from mtrec_ray import cli

if __name__ == "__main__":
    cli.job(cli.pretrain)
