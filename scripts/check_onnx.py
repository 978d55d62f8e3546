#!/usr/bin/env python3
"""Checks ONNX files with ONNX's own checker and onnxruntime against fixed inputs and the outputs that ganvae gave for them.

Usage: check_onnx.py FOLDER...        (needs numpy, onnx, onnxruntime and safetensors)

FOLDER holds NAME.onnx, and expected.safetensors that holds, for each NAME and some batch sizes, `NAME.BATCH.PORT` for each
input and output. A model must pass the full check and strict shape inference, have inputs and outputs whose first dimension is
of any size and stays so through the graph, and give those outputs in onnxruntime on the CPU, to TOLERANCE of the largest
output. Networks treat each image by itself, so other batch sizes are cut and put together from the largest fixed one: they must
give the same rows.

Prints one line for each network. Exit 0 when everything agrees, 1 with one sentence for each network that does not.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from safetensors import SafetensorError
from safetensors.numpy import load_file

# Of the largest value of an output in any batch: float32 sums over thousands of terms in another order.
TOLERANCE = 1e-5
OLDEST_OPSET = 17


class Wrong(Exception):
    """What is wrong with one network, in a sentence."""


def require(holds, sentence):
    if not holds:
        raise Wrong(sentence)


def dims(value):
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def check_model(path):
    """The model, past every check that needs no input."""
    try:
        onnx.checker.check_model(path, full_check=True)
        model = onnx.load(path)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as e:
        raise Wrong(f"onnx refuses it: {str(e).strip()}") from e
    opset = {o.domain: o.version for o in model.opset_import}.get("", 0)
    require(opset >= OLDEST_OPSET, f"its opset is {opset}, wanted {OLDEST_OPSET} or newer")
    constants = {""} | {c.name for c in model.graph.initializer}
    for node in model.graph.node:
        # A weight in another shape: no batch goes through it.
        if constants.issuperset(node.input):
            constants.update(node.output)
    for value in [*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info]:
        require(
            value.name in constants or dims(value)[:1] == ["batch"] and all(type(d) is int and d > 0 for d in dims(value)[1:]),
            f"'{value.name}' is of {dims(value)}, wanted a first dimension 'batch' and numbers after it",
        )
    made = {output for node in inferred.graph.node for output in node.output}
    known = {value.name for value in [*inferred.graph.output, *inferred.graph.value_info]}
    require(made == known, f"shape inference does not know {sorted(made - known)}")
    for value in [*model.graph.input, *model.graph.output]:
        require(value.doc_string, f"'{value.name}' has no description")
    return model


def fixed_batches(tensors, name, inputs, outputs):
    """{batch: ({input: value}, {output: expected})} of the network `name`."""
    found = {}
    for key, value in tensors.items():
        network, batch, port = key.rsplit(".", 2)
        if network == name:
            found.setdefault(int(batch), {})[port] = value
    require(found, f"no key '{name}.BATCH.PORT' is in the file of fixed inputs")
    for batch, ports in found.items():
        wanted = {*inputs, *outputs}
        require(set(ports) == wanted, f"batch {batch} of the fixed inputs has {sorted(ports)}, wanted {sorted(wanted)}")
    return {b: ({i: ports[i] for i in inputs}, {o: ports[o] for o in outputs}) for b, ports in sorted(found.items())}


def other_batches(batches):
    """Batch sizes that are not among the fixed ones: rows of the largest, cut and repeated."""
    most = max(batches)
    given, expected = batches[most]
    sizes = [n for n in (2, 3, 5, most - 1, most + 1, 2 * most + 3) if n > 0 and n not in batches]
    rows = {n: np.arange(n)[::-1] % most for n in sizes}
    cut = lambda ports, at: {name: value[at] for name, value in ports.items()}
    return {n: (cut(given, at), cut(expected, at)) for n, at in rows.items()}


def difference(session, scales, batch, given, expected):
    """Largest difference of one batch, over `scales`: for each output the largest value of any batch."""
    outputs = list(scales)
    got = session.run(outputs, given)
    worst = 0.0
    for name, value in zip(outputs, got):
        wanted = expected[name]
        require(
            value.shape == wanted.shape and value.dtype == wanted.dtype,
            f"{name} of a batch of {batch} is {value.dtype} of {value.shape}, wanted {wanted.dtype} of {wanted.shape}",
        )
        off = np.abs(value.astype(np.float64) - wanted).max() / max(scales[name], 1e-30)
        # Not `off > TOLERANCE`: that would let NaN pass.
        require(
            off <= TOLERANCE,
            f"{name} of a batch of {batch} differs by {off:.1e} of the largest value of any, {scales[name]:.3g}; wanted {TOLERANCE:g} or less",
        )
        worst = max(worst, off)
    return worst


def check(path, tensors):
    """Everything about one file; what there is to say of it when all is well."""
    model = check_model(path)
    inputs, outputs = ([port.name for port in ports] for ports in (model.graph.input, model.graph.output))
    fixed = fixed_batches(tensors, path.stem, inputs, outputs)
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        batches = {**fixed, **other_batches(fixed)}
        scales = {o: max(np.abs(expected[o]).max() for _, expected in fixed.values()) for o in outputs}
        worst = max(difference(session, scales, n, given, expected) for n, (given, expected) in batches.items())
    except Wrong:
        raise
    except Exception as e:
        raise Wrong(f"onnxruntime refuses it: {str(e).strip()}") from e
    graph = model.graph
    return (
        f"{path.stem}: {len(graph.node)} nodes, {len(graph.initializer)} constants, {', '.join(inputs)} -> "
        f"{', '.join(outputs)}; at batches of {', '.join(map(str, sorted(batches)))} within {worst:.1e} of the largest output"
    )


def check_folder(folder):
    """Whether all is well with every file of a folder; says what is not."""
    fixed = folder / "expected.safetensors"
    try:
        tensors = load_file(fixed)
    except (OSError, SafetensorError) as e:
        sys.exit(f"error: {fixed} could not be read as fixed inputs: {e}")
    odd = [key for key in tensors if key.count(".") < 2 or not key.rsplit(".", 2)[1].isdigit()]
    if odd:
        sys.exit(f"error: {fixed} has the key '{odd[0]}', wanted NAME.BATCH.PORT")
    paths = sorted(folder.glob("*.onnx"))
    missing = sorted({key.rsplit(".", 2)[0] for key in tensors} - {path.stem for path in paths})
    if missing or not paths:
        sys.exit(f"error: {folder} holds no {missing[0] if missing else 'NAME'}.onnx: export the model there")
    well = True
    for path in paths:
        try:
            print(f"{folder.name} {check(path, tensors)}", flush=True)
        except Wrong as e:
            well = False
            print(f"error: {path}: {e}", file=sys.stderr)
    return well


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, metavar="FOLDER", nargs="+")
    sys.exit(0 if all([check_folder(folder) for folder in parser.parse_args().folders]) else 1)


if __name__ == "__main__":
    main()
