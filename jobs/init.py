"""Look at logs where they are, and print a config for them.

ray job submit --working-dir . -- python jobs/init.py s3://bucket/logs
"""

from mtrec_ray import cli

if __name__ == "__main__":
    cli.job(cli.init)
