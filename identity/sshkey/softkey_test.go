package sshkey_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"io"
	"math/big"
	"strings"
	"testing"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/invarhq/invar/identity/sshkey"
)

// softKey signs as a FIDO security key does (PROTOCOL.u2f), with a private key in memory.
type softKey struct {
	public  ssh.PublicKey
	private crypto.Signer
	flags   byte
	counter uint32
}

const application = "ssh:"

func newSoftEd25519(t testing.TB, flags byte, counter uint32) *softKey {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	key, err := ssh.ParsePublicKey(ssh.Marshal(struct {
		Type        string
		Key         []byte
		Application string
	}{ssh.KeyAlgoSKED25519, public, application}))
	must(t, err)
	return &softKey{key, private, flags, counter}
}

func newSoftECDSA(t testing.TB, flags byte, counter uint32) *softKey {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	point, err := private.PublicKey.Bytes()
	must(t, err)
	key, err := ssh.ParsePublicKey(ssh.Marshal(struct {
		Type, Curve string
		Key         []byte
		Application string
	}{ssh.KeyAlgoSKECDSA256, "nistp256", point, application}))
	must(t, err)
	return &softKey{key, private, flags, counter}
}

func (k *softKey) PublicKey() ssh.PublicKey { return k.public }

func (k *softKey) Sign(random io.Reader, data []byte) (*ssh.Signature, error) {
	app, message := sha256.Sum256([]byte(application)), sha256.Sum256(data)
	signed := ssh.Marshal(struct {
		Application [32]byte
		Flags       byte
		Counter     uint32
		Message     [32]byte
	}{app, k.flags, k.counter, message})
	sig := &ssh.Signature{
		Format: k.public.Type(),
		Rest: ssh.Marshal(struct {
			Flags   byte
			Counter uint32
		}{k.flags, k.counter}),
	}
	var err error
	if private, ok := k.private.(*ecdsa.PrivateKey); ok {
		hash := sha256.Sum256(signed)
		var r, s *big.Int
		r, s, err = ecdsa.Sign(random, private, hash[:])
		sig.Blob = ssh.Marshal(struct{ R, S *big.Int }{r, s})
	} else {
		sig.Blob, err = k.private.Sign(random, signed, crypto.Hash(0))
	}
	return sig, err
}

// signers are one of each kind of key that is taken.
func signers(t *testing.T) map[string]ssh.Signer {
	t.Helper()
	all := map[string]ssh.Signer{
		"sk-ed25519": newSoftEd25519(t, 0x05, 7),
		"sk-ecdsa":   newSoftECDSA(t, 0x01, 0),
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	private := map[string]any{"ed25519": ed, "rsa": rsaKey}
	for name, curve := range map[string]elliptic.Curve{"ecdsa-256": elliptic.P256(), "ecdsa-384": elliptic.P384(), "ecdsa-521": elliptic.P521()} {
		private[name], err = ecdsa.GenerateKey(curve, rand.Reader)
		must(t, err)
	}
	for name, key := range private {
		all[name], err = ssh.NewSignerFromKey(key)
		must(t, err)
	}
	return all
}

func sign(t testing.TB, s ssh.Signer, namespace, message string) sshkey.Signature {
	t.Helper()
	raw, err := sshsig.Sign(strings.NewReader(message), s, sshsig.HashSHA512, namespace)
	must(t, err)
	sig, err := sshkey.FromSSHSIG(raw)
	must(t, err)
	return sig
}

func keyOf(t *testing.T, s ssh.Signer) sshkey.PublicKey {
	t.Helper()
	key, err := sshkey.FromSSH(s.PublicKey())
	must(t, err)
	return key
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
