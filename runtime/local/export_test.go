package local

// DialIn is for tests that talk to what runs in an instance.
var DialIn = dialIn
