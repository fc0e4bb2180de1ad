"""A model of one dense layer, read from `model.tflite` and written back with other numbers.

A refitted model is the current file with other numbers in its two buffers: graph, names and sizes stay as the edge module
knows them, the same numbers give the same bytes, and neither TensorFlow nor its converter is needed.

The file is a FlatBuffer. Field numbers are those of TensorFlow Lite's schema.fbs (version 3).
"""

import struct
from dataclasses import dataclass

import numpy as np

from .recordings import DataFault

# Fields of the tables that are read.
MODEL_OPERATOR_CODES, MODEL_SUBGRAPHS, MODEL_BUFFERS = 1, 2, 4
SUBGRAPH_TENSORS, SUBGRAPH_OPERATORS = 0, 3
OPERATOR_CODE, OPERATOR_INPUTS, OPERATOR_OPTIONS = 0, 1, 4
TENSOR_SHAPE, TENSOR_TYPE, TENSOR_BUFFER = 0, 1, 2
CODE_BUILTIN, OPTIONS_ACTIVATION, BUFFER_DATA = 0, 0, 0
FULLY_CONNECTED, NO_ACTIVATION, FLOAT32 = 9, 0, 0
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Dense:
    """weights · features + bias, a logit; in f64, of the f32 numbers that stand in the file."""

    content: bytes
    weights: np.ndarray
    bias: float
    weights_at: int
    bias_at: int

    def logits(self, features):
        """Of feature vectors [..., features], taken as the f32 that the edge module gives the model."""
        features = np.asarray(features, dtype=np.float32).astype(np.float64)
        return features @ self.weights + self.bias

    def with_numbers(self, weights, bias):
        """The same file with these numbers, rounded to f32."""
        weights = np.asarray(weights, dtype="<f4")
        if weights.shape != self.weights.shape or not np.isfinite([*weights, bias]).all():
            raise ValueError(f"{len(self.weights)} finite weights and a bias are needed")
        content = bytearray(self.content)
        for place, numbers in ((self.weights_at, weights), (self.bias_at, np.array([bias], "<f4"))):
            content[place : place + numbers.nbytes] = numbers.tobytes()
        return read(bytes(content), "the new model")


def read(content, path):
    """The layer of a file's content; `path` is for the message where it is another kind of model."""
    try:
        return _read(content, path)
    except (struct.error, IndexError, OverflowError):
        raise DataFault(
            path, "is no TensorFlow Lite model, or is damaged", "name the folder of a bundle"
        ) from None


def _read(content, path):
    buffer = _FlatBuffer(content)
    root = buffer.deref(0)
    subgraphs = buffer.tables(root, MODEL_SUBGRAPHS)
    operators = buffer.tables(subgraphs[0], SUBGRAPH_OPERATORS) if len(subgraphs) == 1 else []
    if len(operators) != 1 or not _is_plain_layer(buffer, root, operators[0]):
        raise DataFault(
            path,
            "is no model of one dense layer",
            "only those, as motor-shape and motor-line are, can be refitted on a lake",
        )
    tensors = buffer.tables(subgraphs[0], SUBGRAPH_TENSORS)
    buffers = buffer.tables(root, MODEL_BUFFERS)
    places = []
    for index in buffer.integers(operators[0], OPERATOR_INPUTS)[1:]:
        tensor = tensors[index]
        shape = buffer.integers(tensor, TENSOR_SHAPE)
        data = buffer.vector(buffers[buffer.u32_of(tensor, TENSOR_BUFFER)], BUFFER_DATA)
        if data is None or shape[0] != 1 or buffer.u8_of(tensor, TENSOR_TYPE) != FLOAT32:
            raise DataFault(path, "holds no f32 of one output", "export the bundle again")
        places.append((data[0], shape[-1], data[1]))
    (weights_at, count, weight_bytes), (bias_at, one, bias_bytes) = places
    if (weight_bytes, one, bias_bytes) != (count * FLOAT_BYTES, 1, FLOAT_BYTES):
        raise DataFault(path, "has weights of another size than it says", "export the bundle again")
    weights = np.frombuffer(content, "<f4", count, weights_at).astype(np.float64)
    bias = float(np.frombuffer(content, "<f4", 1, bias_at)[0])
    return Dense(content, weights, bias, weights_at, bias_at)


def _is_plain_layer(buffer, root, operator):
    codes = buffer.tables(root, MODEL_OPERATOR_CODES)
    code = codes[buffer.u32_of(operator, OPERATOR_CODE)]
    options = buffer.field(operator, OPERATOR_OPTIONS)
    activation = NO_ACTIVATION
    if options is not None:
        activation = buffer.u8_of(buffer.deref(options), OPTIONS_ACTIVATION)
    inputs = buffer.integers(operator, OPERATOR_INPUTS)
    is_layer = buffer.u8_of(code, CODE_BUILTIN) == FULLY_CONNECTED
    return is_layer and activation == NO_ACTIVATION and len(inputs) == 3 and min(inputs) >= 0


class _FlatBuffer:
    """Tables and vectors of a FlatBuffer by their place in it."""

    def __init__(self, content):
        self.content = content

    def number(self, form, place):
        if place < 0:
            raise IndexError(place)
        return struct.unpack_from(form, self.content, place)[0]

    def deref(self, place):
        return place + self.number("<I", place)

    def field(self, table, index):
        """Where a field of a table stands; None if it has its default."""
        layout = table - self.number("<i", table)
        entry = 4 + 2 * index
        if entry >= self.number("<H", layout):
            return None
        offset = self.number("<H", layout + entry)
        return table + offset if offset else None

    def u32_of(self, table, index):
        place = self.field(table, index)
        return 0 if place is None else self.number("<I", place)

    def u8_of(self, table, index):
        place = self.field(table, index)
        return 0 if place is None else self.number("<B", place)

    def vector(self, table, index):
        """Place of the first element and their number; None if there is no vector, or an empty one."""
        place = self.field(table, index)
        if place is None:
            return None
        start = self.deref(place)
        length = self.number("<I", start)
        if start + 4 + length > len(self.content):
            raise IndexError(length)
        return (start + 4, length) if length else None

    def integers(self, table, index):
        start, length = self.vector(table, index) or (0, 0)
        return [self.number("<i", start + 4 * number) for number in range(length)]

    def tables(self, table, index):
        start, length = self.vector(table, index) or (0, 0)
        return [self.deref(start + 4 * number) for number in range(length)]
