"""Search values of a config, and write the report and best.yaml.

ray job submit --working-dir . -- python jobs/tune.py configs/qwen3_8b_zero3.yaml
"""

from mtrec_ray import cli

if __name__ == "__main__":
    cli.job(cli.tune)
