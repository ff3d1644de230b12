"""What every part of the library uses: checks, files, threads, locks."""
