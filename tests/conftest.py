"What all tests begin with"
import signal

# A program in the background of a script has Ctrl-C ignored, and hands that on to those that it starts
signal.signal(signal.SIGINT, signal.default_int_handler)
