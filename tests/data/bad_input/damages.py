"""Everything that can be done to a setup."""

from collections.abc import Callable

from tests.data.bad_input import files, places, rows, settings
from tests.data.bad_input.setup import Setup

Damage = Callable[[Setup], None]

DAMAGES: list[Damage] = [
    rows.strange_cells,
    rows.strange_column,
    rows.strange_times,
    rows.other_unit,
    rows.same_everywhere,
    rows.no_rows,
    rows.one_row,
    rows.missing_column,
    rows.renamed_column,
    rows.two_columns_of_a_name,
    rows.other_type_later,
    files.typed_parquet,
    files.cut_file,
    files.broken_bytes,
    files.replaced_file,
    files.encoded_otherwise,
    files.strange_lines,
    places.wrong_extension,
    places.declared_format,
    places.folders_misnamed,
    places.something_else_there,
    places.looping_links,
    places.other_files_beside,
    places.strange_names,
    rows.no_such_rows,
    rows.tables_contradict,
    places.no_logs,
    places.gone_after_listing,
    places.may_not_be_read,
    places.full_disk,
    settings.prepared_elsewhere,
    settings.other_pattern,
    settings.other_expression,
    settings.misspelt,
    settings.other_value,
    settings.broken_config,
]
"""In the order in which several of them are done: the last ones leave nothing of the config to rely on."""


def damage(setup: Setup, chosen: list[Damage]) -> None:
    for one in sorted(chosen, key=DAMAGES.index):
        one(setup)
