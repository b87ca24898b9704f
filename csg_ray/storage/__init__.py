"""Where studies and runs are kept: files that are whole or not there, on a disk or on a URI."""
