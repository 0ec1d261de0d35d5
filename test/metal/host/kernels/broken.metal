// A mistake, so that its file and line come back in the host's error.
[[host_name("broken")]] [[kernel]] void broken(device float *y [[buffer(1)]], uint i [[thread_position_in_grid]]) {
    y[i] = undeclared_name;
}

[[host_name("whole")]] [[kernel]] void whole(device float *y [[buffer(1)]], uint i [[thread_position_in_grid]]) {
    y[i] = 0.0f;
}
