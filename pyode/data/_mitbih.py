"""MIT-BIH heartbeats: from the WFDB records, or from the CSV pair made of them."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import warnings
from typing import Any

import numpy as np

from .._errors import DataError, choose

RATE, LENGTH = 125, 187  # Hz, samples
WINDOW = 10.0  # seconds over which the median RR interval is taken

CLASSES = ("N", "S", "V", "F", "Q")
AAMI = {
    **dict.fromkeys("NLRej", 0),
    **dict.fromkeys("AaJS", 1),
    **dict.fromkeys("VE", 2),
    "F": 3,
    **dict.fromkeys("/fQ", 4),
}
COUNTS = (90_631, 2_781, 7_236, 803, 8_043)  # of all 48 records
CSV_COUNTS = {
    "mitbih_train.csv": (72_471, 2_223, 5_788, 641, 6_431),
    "mitbih_test.csv": (18_118, 556, 1_448, 162, 1_608),
}

# de Chazal, O'Dwyer, Reilly 2004, doi:10.1109/TBME.2004.827359; the four paced records, which they
# leave out, are divided two and two. Records 201 and 202 are one subject, on both sides of it.
TRAIN_RECORDS = (
    101, 102, 104, 106, 108, 109, 112, 114, 115, 116, 118, 119, 122, 124, 201, 203, 205, 207, 208,
    209, 215, 220, 223, 230,
)  # fmt: skip
TEST_RECORDS = (
    100, 103, 105, 107, 111, 113, 117, 121, 123, 200, 202, 210, 212, 213, 214, 217, 219, 221, 222,
    228, 231, 232, 233, 234,
)  # fmt: skip
RECORDS = tuple(sorted(TRAIN_RECORDS + TEST_RECORDS))


@dataclasses.dataclass(frozen=True, eq=False)
class Beats:
    """Heartbeats.

    Attributes:
        x: `[B, 187]` float32 in [0, 1] at 125 Hz, zero-padded at the end.
        y: `[B]` int64, an index into `CLASSES`.
        record: `[B]` int64, the record (patient) a beat is from; -1 where that is not known.
    """

    x: np.ndarray
    y: np.ndarray
    record: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Any) -> Beats:
        return Beats(self.x[index], self.y[index], self.record[index])

    @property
    def counts(self) -> tuple[int, ...]:
        """Beats of each class."""
        return tuple(int(c) for c in np.bincount(self.y, minlength=len(CLASSES)))

    @property
    def weights(self) -> np.ndarray:
        """`[5]` float32 class weights for the loss: inverse frequency, mean one over the beats."""
        counts = np.maximum(np.array(self.counts), 1)
        return (len(self) / (len(CLASSES) * counts)).astype(np.float32)


def read_records(folder: str | os.PathLike[str], records: tuple[int, ...] | None = None) -> Beats:
    """Cut every annotated beat out of WFDB records (needs the `ecg` extra).

    As Kachuee, Fazeli, Sarrafzadeh (2018, arXiv:1805.00794): resampled to 125 Hz; a beat starts at
    its R peak (here the annotated one), is 1.2 median RR intervals of its 10 s window long, scaled
    to [0, 1], zero-padded to 187 samples. Lead II (MLII), or the first lead where there is none.

    Args:
        folder: holds `NNN.dat`, `NNN.hea`, `NNN.atr`.
        records: record numbers; None: all 48, whose class counts are then checked.

    Raises:
        DataError: a file is missing or is not what its name says, or the counts are wrong.
    """
    folder = pathlib.Path(folder)
    parts = [_read_record(folder, number) for number in records or RECORDS]
    beats = concatenate(parts)
    if records is None and beats.counts != COUNTS:
        raise DataError(
            f"{folder} holds {dict(zip(CLASSES, beats.counts, strict=True))} beats; the database "
            f"has {dict(zip(CLASSES, COUNTS, strict=True))}. Download them again."
        )
    return beats


def concatenate(parts: list[Beats]) -> Beats:
    """Several sets as one."""
    return Beats(*(np.concatenate([getattr(p, k) for p in parts]) for k in ("x", "y", "record")))


def load_wfdb() -> Any:
    """The wfdb package; it warns of its own use of pandas when it is imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import wfdb
    except ImportError as err:
        raise DataError("WFDB records need the wfdb package: pip install 'pyode[ecg]'.") from err
    return wfdb


def _read_record(folder: pathlib.Path, number: int) -> Beats:
    path = folder / str(number)
    for suffix in (".dat", ".hea", ".atr"):
        if not path.with_suffix(suffix).is_file():
            raise DataError(
                f"{path}{suffix} is missing. Pass the folder of the MIT-BIH records, which "
                "physionet.org has (on the command line --data-dir, or PYODE_DATA)."
            )
    if path.with_suffix(".atr").read_bytes()[-2:] != b"\0\0":
        raise DataError(f"{path}.atr has no end mark: it is cut short. Download it again.")
    signal, rate, notes = _read_wfdb(path)
    if not set(notes.symbol) & set(AAMI):
        raise DataError(f"{path}.atr has no beat in it. Download it again.")
    return _cut(signal, rate, np.asarray(notes.sample), list(notes.symbol), number)


def _read_wfdb(path: pathlib.Path) -> tuple[np.ndarray, float, Any]:
    """Samples `[T]` (mV), their rate (Hz) and the annotations of a record.

    Raises:
        DataError: it is not whole, is another record, or its samples have another checksum.
    """
    wfdb = load_wfdb()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # wfdb's own use of pandas
            header = wfdb.rdheader(str(path))
            if header.record_name != path.name:
                raise ValueError(f"{path.name}.hea is of record {header.record_name}")
            names = header.sig_name
            if not names:
                raise ValueError("its header names no lead")
            lead = names.index("MLII") if "MLII" in names else 0
            record = wfdb.rdrecord(str(path), channels=[lead], physical=False)
            notes = wfdb.rdann(str(path), "atr")
            total, known = int(record.d_signal.astype(np.int64).sum()), record.checksum[0]
            if known is not None and (total - known) % 65536:
                raise ValueError(f"its samples have checksum {total % 65536}, not {known % 65536}")
            return np.asarray(record.dac(), dtype=float)[:, 0], float(record.fs), notes
    except (ValueError, IndexError, KeyError, TypeError, OSError) as err:
        raise DataError(f"{path} is no whole WFDB record: {err}. Download it again.") from err


def _cut(
    signal: np.ndarray, rate: float, samples: np.ndarray, symbols: list[str], number: int
) -> Beats:
    """Beats of one record."""
    from scipy.signal import resample_poly

    is_beat = np.array([s in AAMI for s in symbols])
    peaks = samples[is_beat] / rate
    labels = np.array([AAMI[s] for s in symbols if s in AAMI], dtype=np.int64)
    wave = resample_poly(np.nan_to_num(signal), RATE, round(rate))
    rows = np.zeros((len(peaks), LENGTH), dtype=np.float32)
    window = (peaks // WINDOW).astype(int)
    for w in np.unique(window):
        inside = np.flatnonzero(window == w)
        # a window with one beat takes the interval to its neighbour
        near = peaks[max(inside[0] - 1, 0) : inside[-1] + 2]
        period = float(np.median(np.diff(near))) if len(near) > 1 else 1.0
        size = min(max(round(1.2 * period * RATE), 2), LENGTH)
        for i in inside:
            start = round(peaks[i] * RATE)
            piece = wave[start : start + size]
            if len(piece):
                low, high = piece.min(), piece.max()
                rows[i, : len(piece)] = (piece - low) / max(high - low, 1e-12)
    return Beats(rows, labels, np.full(len(labels), number, dtype=np.int64))


def read_csv(path: str | os.PathLike[str]) -> Beats:
    """One file of the CSV pair: 188 columns, the last the class.

    Raises:
        DataError: missing, cut short, not of 188 columns, a number out of its range, or not with
            the class counts it is known by.
    """
    import pandas as pd

    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError(f"{path} is missing. Pass --data-dir, or set PYODE_DATA.")
    try:
        table = pd.read_csv(path, header=None, dtype=np.float32).to_numpy()
    except (OSError, ValueError) as err:
        raise DataError(f"{path} cannot be read as numbers: {str(err).strip()}.") from err
    if table.shape[1] != LENGTH + 1:
        raise DataError(f"{path} has {table.shape[1]} columns, not {LENGTH + 1}.")
    _check_rows(path, table)
    labels = table[:, -1].astype(np.int64)
    beats = Beats(table[:, :-1].copy(), labels, np.full(len(labels), -1))
    known = CSV_COUNTS.get(path.name)
    if known is not None and beats.counts != known:
        raise DataError(f"{path} has class counts {beats.counts}, not {known}: it is not complete.")
    return beats


def _check_rows(path: pathlib.Path, table: np.ndarray) -> None:
    """Refuse the first row with a hole, a sample outside [0, 1], or a class that is none."""
    samples, labels = table[:, :-1], table[:, -1]
    for bad, what in (
        (~np.isfinite(table).all(1), "has less than 188 numbers: it is cut short"),
        ((samples < 0).any(1) | (samples > 1).any(1), "holds a sample outside [0, 1]"),
        (~np.isin(labels, range(len(CLASSES))), "ends with none of the classes 0 to 4"),
    ):
        if bad.any():
            row = int(np.argmax(bad)) + 1
            raise DataError(f"{path}: row {row} {what}. Download it again.")


def split(
    beats: Beats, by: str = "patient", test: float = 0.2, seed: int = 0
) -> tuple[Beats, Beats]:
    """Training and test beats.

    Args:
        by: "patient": no record is on both sides (de Chazal's division): what a new patient will
            see. "beat": at random, so that every patient is on both sides: what the literature
            reports, and too good.
        test: part of the beats in the test set, for "beat".
        seed: of the random division.

    Raises:
        DataError: by patient, where the records are not known.
    """
    if by == "beat":
        order = np.random.default_rng(seed).permutation(len(beats))
        cut = round(test * len(beats))
        return beats[np.sort(order[cut:])], beats[np.sort(order[:cut])]
    if by != "patient":
        raise choose("by", by, ("patient", "beat"))
    if (beats.record < 0).any():
        raise DataError("the CSV files do not say which patient a beat is from. Pass by='beat'.")
    in_test = np.isin(beats.record, TEST_RECORDS)
    return beats[~in_test], beats[in_test]
