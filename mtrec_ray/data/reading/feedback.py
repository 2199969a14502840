"""Feedback in files of its own -> canonical events of a user, an item or impression, a time and a type."""

import numpy as np
import pyarrow as pa

from mtrec_ray.data.reading.events import Events
from mtrec_ray.data.reading.formats import RawBatch
from mtrec_ray.data.reading.log_files import feedback_columns
from mtrec_ray.data.reading.raw_rows import RawRows
from mtrec_ray.data.reading.reader import Reader, same


class FeedbackReader(Reader):
    """A file of `data.feedback`. Each task finds its value in the rows of its type, known at the row's own time."""

    def events(self, batch: RawBatch) -> Events:
        assert self.file.feedback is not None
        source = self.run.data.feedback[self.file.feedback]
        rows = RawRows(batch, self.file.path)
        names = feedback_columns(self.run, source)
        texts = self.texts(rows, {role: names[role] for role in names if role != "time"}, list(names))
        kind = texts.pop("event", None)
        if kind is None:
            kind = pa.array([source.type] * len(rows), pa.string())
        micros = self.times(rows).micros
        columns = {**texts, "time": pa.array(micros)}
        columns["event" if self.run.data.layout == "behaviours" else "feedback"] = kind
        for name, task in self.run.tasks.items():
            if task.event is not None:
                label = self.feedback(rows, name, task, same(kind, task.event))
                columns[f"label.{name}"] = pa.array(label)
                columns[f"feedback_time.{name}"] = pa.array(micros, mask=(micros == 0) | np.isnan(label))
        columns |= self.deliveries(rows, source.unique_by, f"feedback {self.file.feedback}")
        return self.finish(rows, columns)
