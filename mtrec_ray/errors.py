"""Every error a user can cause or cure.

    UserError            the user can do something about it; the message is complete, no traceback is shown
    |- ConfigError       a config key, value or combination of values
    |- DataError         a log, table, shard or prepared folder
    |- BackboneError     a backbone that cannot be loaded, or cannot be run as asked
    |- ClusterError      workers that were lost more often than the job may start again; Ray that does not start
    '- DivergedError     a training whose loss is no number any more

A message names the file, row or dotted config path, what was found, what was expected, and the remedy.
Anything else that is raised is a defect of ours and keeps its traceback.
"""


class UserError(Exception):
    """Base of all errors that the command line prints as one message and exit code 2."""


class ConfigError(UserError):
    """A config key, value, or combination of values that cannot be used."""


class DataError(UserError):
    """A log, table, shard or prepared folder that cannot be used."""


class BackboneError(UserError):
    """A backbone that cannot be loaded, or cannot be run as the config asks."""


class ClusterError(UserError):
    """Machines or processes that were lost under a job more often than it may start again, or that did not start."""


class DivergedError(UserError):
    """A training whose loss is not finite."""
