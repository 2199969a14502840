"""Write generated logs to a folder that all nodes share.

ray job submit --working-dir . -- python jobs/sample.py /shared/logs --users 100000 --shards 16
"""

from mtrec_ray import cli

if __name__ == "__main__":
    cli.job(cli.sample)
