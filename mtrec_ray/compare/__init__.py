"""Does learning the tasks together pay? What is trained, what comes out, and how it is told."""
