"""The uses of one robust classifier. Each task states a problem and hands it to the loop."""
