"""The launches of a decoding step on an emulated GPU: few, and as many with adapters as without."""

from benchmarks.launches import Launches, counted, table


def test_a_decoding_step_launches_few_kernels_with_any_weights():
    counts = {(count.weights, count.chunk): count for count in counted(36, rows=3, weights=("float32", "LoRA"))}
    for weights in ("float32", "LoRA"):
        # Of 36 in a layer seven are products, four norms, four rotary embeddings, five attention calls.
        assert counts[weights, "first"].per_layer <= 36
        assert counts[weights, "later"].per_layer <= 46
        assert max(counts[weights, chunk].besides for chunk in ("first", "later")) <= 32


def test_the_table_is_for_any_number_of_layers():
    # 40 x 36 + 26 = 1466.
    assert table([Launches("LoRA", "first", 40, 26, 36)]).splitlines()[2] == "| LoRA | first | 40 | 26 | 1,466 |"
