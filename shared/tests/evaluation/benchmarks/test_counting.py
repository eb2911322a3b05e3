from revisit.evaluation.benchmarks.counting import as_counts, by_columns, ratio


def test_formulas_on_columns_take_one_row_or_many():
    measure = by_columns(lambda columns: [ratio(columns[0], columns[1])])
    assert measure(as_counts([(1, 2), (0, 0), (3, 3)])).tolist() == [[0.5, 0, 1]]
    assert measure((1, 2)).tolist() == [0.5]
