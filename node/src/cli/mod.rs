//! The face of the program: arguments, output, errors.
