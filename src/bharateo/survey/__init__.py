"""Survey: points planned on a map, areas and accuracies from their answers, change over a floor."""
