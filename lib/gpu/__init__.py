"""The machine's GPUs: what NVML reads of them, and their faults."""
