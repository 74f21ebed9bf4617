// Conv4-64 engine: Winograd F(2x2,3x3) convolutions (NHWC, 64 channels), batch-norm with
// batch statistics, 2x2 max-pool + ReLU; forward, backward, and the tangent (R-operator) of
// both (needed for second-order MAML). Plain C ABI, called through ctypes. T = float | double.
#include <cstring>
#include <cmath>
#include <cstdint>
#include <vector>
#include <algorithm>
#include <cstdlib>
#include <omp.h>
#define AI inline __attribute__((always_inline))
namespace {
constexpr int C = 64;
template<class T> struct VT { typedef T v __attribute__((vector_size(64), aligned(4), may_alias)); static constexpr int L = 64/sizeof(T), NV = C/L; };
template<> struct VT<double> { typedef double v __attribute__((vector_size(64), aligned(8), may_alias)); static constexpr int L = 8, NV = 8; };
#define V_(T) typename VT<T>::v
#define LD(T,p) (*(const V_(T)*)(p))
#define ST(T,p) (*(V_(T)*)(p))
template<class T> struct Buf { T* p=nullptr; size_t n=0; 
  T* get(size_t m){ if(m>n){ free(p); p=(T*)aligned_alloc(64,((m*sizeof(T)+63)/64)*64); n=m;} return p; } ~Buf(){free(p);} };

template<class T,int MR> AI void mk(const T*A,long rs,long ks,int K,const T*B,T*Cc,bool acc){
  constexpr int L=VT<T>::L;
  V_(T) c[MR][4];
  for(int r=0;r<MR;r++) for(int j=0;j<4;j++) c[r][j]= acc? LD(T,Cc+r*C+j*L) : V_(T){};
  for(int k=0;k<K;k++){ const T*b=B+k*C; const T*a=A+k*ks;
    V_(T) b0=LD(T,b),b1=LD(T,b+L),b2=LD(T,b+2*L),b3=LD(T,b+3*L);
    #pragma GCC unroll 8
    for(int r=0;r<MR;r++){ T s=a[r*rs]; c[r][0]+=s*b0; c[r][1]+=s*b1; c[r][2]+=s*b2; c[r][3]+=s*b3; } }
  for(int r=0;r<MR;r++) for(int j=0;j<4;j++) ST(T,Cc+r*C+j*L)=c[r][j];
}
template<class T> void gemm(int m,const T*A,long rs,long ks,int K,const T*B,T*Cc,bool acc){
  for(int h=0;h<C;h+=4*VT<T>::L){ int i=0;
    for(;i+6<=m;i+=6) mk<T,6>(A+i*rs,rs,ks,K,B+h,Cc+i*C+h,acc);
    switch(m-i){ case 1: mk<T,1>(A+i*rs,rs,ks,K,B+h,Cc+i*C+h,acc);break; case 2: mk<T,2>(A+i*rs,rs,ks,K,B+h,Cc+i*C+h,acc);break;
      case 3: mk<T,3>(A+i*rs,rs,ks,K,B+h,Cc+i*C+h,acc);break; case 4: mk<T,4>(A+i*rs,rs,ks,K,B+h,Cc+i*C+h,acc);break; case 5: mk<T,5>(A+i*rs,rs,ks,K,B+h,Cc+i*C+h,acc);break; } }
}
// weights (64 out,64 in,3,3) -> U[16][in][out], Ut[16][out][in]
template<class T> void wxf(const T*w,T*U,T*Ut){
  for(int o=0;o<C;o++) for(int i=0;i<C;i++){ const T*g=w+(o*C+i)*9; T t[4][3];
    for(int b=0;b<3;b++){ T x=g[b],y=g[3+b],z=g[6+b]; t[0][b]=x; t[1][b]=(x+y+z)*T(.5); t[2][b]=(x-y+z)*T(.5); t[3][b]=z; }
    for(int a=0;a<4;a++){ T x=t[a][0],y=t[a][1],z=t[a][2]; T u[4]={x,(x+y+z)*T(.5),(x-y+z)*T(.5),z};
      for(int b=0;b<4;b++){ U[(a*4+b)*C*C+i*C+o]=u[b]; if(Ut) Ut[(a*4+b)*C*C+o*C+i]=u[b]; } } }
}
template<class T> void wxf_adj(const T*dU,T*dw){ // dU[16][in][out] -> dw
  for(int o=0;o<C;o++) for(int i=0;i<C;i++){ T t[3][4];
    for(int b=0;b<4;b++){ T u[4]; for(int a=0;a<4;a++) u[a]=dU[(a*4+b)*C*C+i*C+o];
      t[0][b]=u[0]+(u[1]+u[2])*T(.5); t[1][b]=(u[1]-u[2])*T(.5); t[2][b]=(u[1]+u[2])*T(.5)+u[3]; }
    T*g=dw+(o*C+i)*9;
    for(int a=0;a<3;a++){ T*u=t[a]; g[a*3]=u[0]+(u[1]+u[2])*T(.5); g[a*3+1]=(u[1]-u[2])*T(.5); g[a*3+2]=(u[1]+u[2])*T(.5)+u[3]; } }
}
template<class T> void tin(const T*x,int n,int H,int W,T*V){ // B^T d B
  int th=(H+1)/2,tw=(W+1)/2; long nt=(long)n*th*tw,t=0; typedef V_(T) v;
  for(int b=0;b<n;b++) for(int i=0;i<th;i++) for(int j=0;j<tw;j++,t++)
    for(int q=0;q<VT<T>::NV;q++){ v d[4][4]; const T*xb=x+(long)b*H*W*C+q*VT<T>::L;
      for(int a=0;a<4;a++){ int r=2*i-1+a; for(int e=0;e<4;e++){ int s=2*j-1+e; d[a][e]=(unsigned(r)<unsigned(H)&&unsigned(s)<unsigned(W))?LD(T,xb+((long)r*W+s)*C):v{}; } }
      v m[4][4];
      for(int e=0;e<4;e++){ m[0][e]=d[0][e]-d[2][e]; m[1][e]=d[1][e]+d[2][e]; m[2][e]=d[2][e]-d[1][e]; m[3][e]=d[1][e]-d[3][e]; }
      T*o=V+t*C+q*VT<T>::L; long fs=nt*C;
      for(int a=0;a<4;a++){ ST(T,o+(a*4)*fs)=m[a][0]-m[a][2]; ST(T,o+(a*4+1)*fs)=m[a][1]+m[a][2]; ST(T,o+(a*4+2)*fs)=m[a][2]-m[a][1]; ST(T,o+(a*4+3)*fs)=m[a][1]-m[a][3]; } }
}
template<class T> void tin_adj(const T*V,int n,int H,int W,T*x){ // x = adjoint, overwritten
  memset(x,0,sizeof(T)*n*H*W*C);
  int th=(H+1)/2,tw=(W+1)/2; long nt=(long)n*th*tw,t=0; typedef V_(T) v; long fs=nt*C;
  for(int b=0;b<n;b++) for(int i=0;i<th;i++) for(int j=0;j<tw;j++,t++)
    for(int q=0;q<VT<T>::NV;q++){ v m[4][4],d[4][4]; const T*o=V+t*C+q*VT<T>::L; 
      for(int a=0;a<4;a++){ v p0=LD(T,o+(a*4)*fs),p1=LD(T,o+(a*4+1)*fs),p2=LD(T,o+(a*4+2)*fs),p3=LD(T,o+(a*4+3)*fs);
        m[a][0]=p0; m[a][1]=p1-p2+p3; m[a][2]=p1+p2-p0; m[a][3]=-p3; }
      for(int e=0;e<4;e++){ d[0][e]=m[0][e]; d[1][e]=m[1][e]-m[2][e]+m[3][e]; d[2][e]=m[1][e]+m[2][e]-m[0][e]; d[3][e]=-m[3][e]; }
      T*xb=x+(long)b*H*W*C+q*VT<T>::L;
      for(int a=0;a<4;a++){ int r=2*i-1+a; if(unsigned(r)<unsigned(H)) for(int e=0;e<4;e++){ int s=2*j-1+e; if(unsigned(s)<unsigned(W)) ST(T,xb+((long)r*W+s)*C)+=d[a][e]; } } }
}
template<class T> void tout(const T*M,int n,int H,int W,T*y){ // A^T m A
  int th=(H+1)/2,tw=(W+1)/2; long nt=(long)n*th*tw,t=0,fs=nt*C; typedef V_(T) v;
  for(int b=0;b<n;b++) for(int i=0;i<th;i++) for(int j=0;j<tw;j++,t++)
    for(int q=0;q<VT<T>::NV;q++){ const T*o=M+t*C+q*VT<T>::L; v r0[4],r1[4];
      for(int e=0;e<4;e++){ v a=LD(T,o+e*fs),b_=LD(T,o+(4+e)*fs),c=LD(T,o+(8+e)*fs),d=LD(T,o+(12+e)*fs); r0[e]=a+b_+c; r1[e]=b_-c-d; }
      T*yb=y+(((long)b*H+2*i)*W+2*j)*C+q*VT<T>::L; bool ej=2*j+1<W, ei=2*i+1<H;
      ST(T,yb)=r0[0]+r0[1]+r0[2]; if(ej) ST(T,yb+C)=r0[1]-r0[2]-r0[3];
      if(ei){ ST(T,yb+(long)W*C)=r1[0]+r1[1]+r1[2]; if(ej) ST(T,yb+(long)W*C+C)=r1[1]-r1[2]-r1[3]; } }
}
template<class T> void tout_adj(const T*y,int n,int H,int W,T*M){
  int th=(H+1)/2,tw=(W+1)/2; long nt=(long)n*th*tw,t=0,fs=nt*C; typedef V_(T) v;
  for(int b=0;b<n;b++) for(int i=0;i<th;i++) for(int j=0;j<tw;j++,t++)
    for(int q=0;q<VT<T>::NV;q++){ T*o=M+t*C+q*VT<T>::L; const T*yb=y+(((long)b*H+2*i)*W+2*j)*C+q*VT<T>::L; bool ej=2*j+1<W, ei=2*i+1<H;
      v y00=LD(T,yb),y01=ej?LD(T,yb+C):v{},y10=ei?LD(T,yb+(long)W*C):v{},y11=(ei&&ej)?LD(T,yb+(long)W*C+C):v{};
      v r0[4]={y00,y00+y01,y00-y01,-y01}, r1[4]={y10,y10+y11,y10-y11,-y11};
      for(int e=0;e<4;e++){ ST(T,o+e*fs)=r0[e]; ST(T,o+(4+e)*fs)=r0[e]+r1[e]; ST(T,o+(8+e)*fs)=r0[e]-r1[e]; ST(T,o+(12+e)*fs)=-r1[e]; } }
}
inline int nblk(int H,int W){ int t=((H+1)/2)*((W+1)/2); return std::max(1,48/t); }
template<class T> struct Ws { Buf<T> a,b,c,d; };
// y = conv(x1,U1) [+ conv(x2,U2)], n images of one weight set (n <= nblk)
template<class T> void cfwd(const T*x1,const T*U1,const T*x2,const T*U2,int n,int H,int W,T*y,Ws<T>&w){
  long nt=(long)n*((H+1)/2)*((W+1)/2); T*V=w.a.get(16*nt*C),*M=w.b.get(16*nt*C);
  tin(x1,n,H,W,V); for(int f=0;f<16;f++) gemm<T>(nt,V+f*nt*C,C,1,C,U1+f*C*C,M+f*nt*C,false);
  if(x2){ tin(x2,n,H,W,V); for(int f=0;f<16;f++) gemm<T>(nt,V+f*nt*C,C,1,C,U2+f*C*C,M+f*nt*C,true); }
  tout(M,n,H,W,y);
}
// dU += x1^T g1 + x2^T g2 ; dx = g1*U1t + g2*U2t  (second pair optional; dx optional)
template<class T> void cbwd(const T*x1,const T*g1,const T*U1t,const T*x2,const T*g2,const T*U2t,int n,int H,int W,T*dU,T*dx,Ws<T>&w){
  long nt=(long)n*((H+1)/2)*((W+1)/2); T*V=w.a.get(16*nt*C),*M=w.b.get(16*nt*C),*D=w.c.get(16*nt*C);
  for(int p=0;p<2;p++){ const T*x=p?x2:x1,*g=p?g2:g1,*Ut=p?U2t:U1t; if(!x) break;
    tin(x,n,H,W,V); tout_adj(g,n,H,W,M);
    for(int f=0;f<16;f++){ gemm<T>(C,V+f*nt*C,1,C,nt,M+f*nt*C,dU+f*C*C,true); gemm<T>(nt,M+f*nt*C,C,1,C,Ut+f*C*C,D+f*nt*C,p>0); } }
  tin_adj(D,n,H,W,dx);
}
// first layer, one input channel; w9[9][64]
template<class T> void l1fwd(const T*x,const T*w9,int H,int W,T*y){
  typedef V_(T) v; constexpr int P=30;  T pad[(P+2)*(P+2)+64]; int S=W+2; std::fill(pad,pad+(H+2)*S,T(0));
  for(int i=0;i<H;i++) memcpy(pad+(i+1)*S+1,x+i*W,W*sizeof(T));
  for(int q=0;q<VT<T>::NV;q++){ v k[9]; for(int a=0;a<9;a++) k[a]=LD(T,w9+a*C+q*VT<T>::L);
    for(int i=0;i<H;i++) for(int j=0;j<W;j++){ const T*p=pad+i*S+j;
      ST(T,y+((long)i*W+j)*C+q*VT<T>::L)=(p[0]*k[0]+p[1]*k[1]+p[2]*k[2])+(p[S]*k[3]+p[S+1]*k[4]+p[S+2]*k[5])+(p[2*S]*k[6]+p[2*S+1]*k[7]+p[2*S+2]*k[8]); } }
}
template<class T> void l1bwd(const T*x,const T*g,int H,int W,T*dw9){
  typedef V_(T) v; constexpr int P=30;  T pad[(P+2)*(P+2)+64]; int S=W+2; std::fill(pad,pad+(H+2)*S,T(0));
  for(int i=0;i<H;i++) memcpy(pad+(i+1)*S+1,x+i*W,W*sizeof(T));
  for(int q=0;q<VT<T>::NV;q++){ v d[9]; for(int a=0;a<9;a++) d[a]=v{};
    for(int i=0;i<H;i++) for(int j=0;j<W;j++){ const T*p=pad+i*S+j; v z=LD(T,g+((long)i*W+j)*C+q*VT<T>::L);
      for(int a=0;a<3;a++) for(int b=0;b<3;b++) d[a*3+b]+=p[a*S+b]*z; }
    for(int a=0;a<9;a++) ST(T,dw9+a*C+q*VT<T>::L)+=d[a]; }
}
// sums of (y-k), (y-k)^2 (shifted; k per channel) into s[128]; raw pooled value pm and idx
template<class T> void statpool(const T*y,int n,int H,int W,const T*sh,const T*ga,double*s,T*pm,uint8_t*idx){
  typedef V_(T) v; int h=H/2,w=W/2; constexpr int L=VT<T>::L;
  for(int b=0;b<n;b++) for(int q=0;q<VT<T>::NV;q++){ const T*yb=y+(long)b*H*W*C+q*L; v k=LD(T,sh+q*L),a{},a2{},sg; 
    for(int l=0;l<L;l++) sg[l]=ga[q*L+l]<0?T(-1):T(1);
    for(int i=0;i<H;i++) for(int j=0;j<W;j++){ v z=LD(T,yb+((long)i*W+j)*C)-k; a+=z; a2+=z*z; }
    for(int l=0;l<L;l++){ s[q*L+l]+=a[l]; s[C+q*L+l]+=a2[l]; }
    for(int i=0;i<h;i++) for(int j=0;j<w;j++){ const T*p=yb+((long)2*i*W+2*j)*C; v m=LD(T,p)*sg; auto id=(m!=m); id=id^id;
      auto up=[&](const T*pp,int c){ v z=LD(T,pp)*sg; auto g=z>m; m=g?z:m; id=g?(id^id)+c:id; };
      up(p+C,1); up(p+(long)W*C,2); up(p+(long)W*C+C,3);
      long o=(((long)b*h+i)*w+j)*C+q*L; ST(T,pm+o)=m*sg;
      typedef uint8_t u8 __attribute__((vector_size(L))); u8 r=__builtin_convertvector(id,u8); memcpy(idx+o,&r,L); } }
}
template<class T> void finstat(const double*s,const T*sh,long M,T*mu,T*r,T*var=nullptr){ for(int c=0;c<C;c++){ double m=s[c]/M,v=std::max(0.0,s[C+c]/M-m*m); mu[c]=T(sh[c]+m); r[c]=T(1/std::sqrt(v+1e-5)); if(var) var[c]=T(v);} }
// generic dense combine: out(px) = A*y + B + (pooled selected) P   with per-channel A,B ; for R-op also A2*y2
template<class T> void dense(const T*y,const T*y2,int n,int H,int W,const T*A,const T*A2,const T*B,const T*P,const uint8_t*idx,T*g){
  typedef V_(T) v; int h=H/2,w=W/2; constexpr int L=VT<T>::L; typedef uint8_t u8 __attribute__((vector_size(L)));
  for(int b=0;b<n;b++) for(int q=0;q<VT<T>::NV;q++){ long base=(long)b*H*W*C+q*L; v a=LD(T,A+q*L),a2=y2?LD(T,A2+q*L):v{},bb=LD(T,B+q*L);
    auto lin=[&](long o)->v{ v z=LD(T,y+o)*a+bb; if(y2) z+=LD(T,y2+o)*a2; return z; };
    for(int i=0;i<h;i++){ for(int j=0;j<w;j++){ long po=(((long)b*h+i)*w+j)*C+q*L; v p=LD(T,P+po),z0{}; u8 r; memcpy(&r,idx+po,L); auto id=__builtin_convertvector(r,decltype(a>a2));
        long o=base+((long)2*i*W+2*j)*C; auto zz=id^id;
        ST(T,g+o)=lin(o)+(id==zz?p:z0); ST(T,g+o+C)=lin(o+C)+(id==zz+1?p:z0);
        o+=(long)W*C; ST(T,g+o)=lin(o)+(id==zz+2?p:z0); ST(T,g+o+C)=lin(o+C)+(id==zz+3?p:z0); }
      if(W&1) for(int e=0;e<2;e++){ long o=base+((long)(2*i+e)*W+W-1)*C; ST(T,g+o)=lin(o); } }
    if(H&1) for(int j=0;j<W;j++){ long o=base+((long)(H-1)*W+j)*C; ST(T,g+o)=lin(o); } }
}
const int HS[5]={28,14,7,3,1};
// ---------------- ProtoNet trunk (forward/backward), statistics per group ----------------
template<class T> struct Trunk {
  int n=0,G=0; std::vector<int> off; Buf<T> y[4],pm[4],out[4],mu,r,U[4],Ut[4]; Buf<uint8_t> idx[4]; Buf<T> din[4]; std::vector<T> w9,ga; 
  std::vector<Ws<T>> ws; std::vector<Buf<T>> sy,sg; Buf<double> st; Buf<T> sh,dU; const T* x=nullptr;
  struct Blk{int s,n,g;};
  std::vector<Blk> blocks(int l,int nth){ std::vector<Blk> v; int H=HS[l]; for(int g=0;g<G;g++){ int m=off[g+1]-off[g]; int nb=l?nblk(H,H):1; int k=(m+nb-1)/nb; if(m>=nth) k=(k+nth-1)/nth*nth; if(k>m)k=m;
      for(int i=0;i<k;i++){ int a=off[g]+(long)m*i/k,e=off[g]+(long)m*(i+1)/k; v.push_back({a,e-a,g}); } } return v; }
  void fwd(const T*x_,int n_,int G_,const int*of,const T*const*w,const T*const*gam,const T*const*bet,T*feat,T*mean_out,T*var_out,int nth){
    x=x_; n=n_; G=G_; off.assign(of,of+G+1); ws.resize(nth); sy.resize(nth); sg.resize(nth); mu.get(4*G*C); r.get(4*G*C); w9.resize(9*C); ga.resize(4*C);
    for(int a=0;a<9;a++) for(int o=0;o<C;o++) w9[a*C+o]=w[0][o*9+a];
    for(int l=0;l<4;l++) memcpy(&ga[l*C],gam[l],C*sizeof(T));
    st.get((size_t)nth*G*2*C); sh.get(G*C);
    #pragma omp parallel for num_threads(nth)
    for(int l=1;l<4;l++) wxf(w[l],U[l].get(16*C*C),Ut[l].get(16*C*C));
    for(int l=0;l<4;l++){ int H=HS[l],h=HS[l+1]; long ys=(long)H*H*C,ps=(long)h*h*C; T*pml=pm[l].get(n*ps); uint8_t*il=idx[l].get(n*ps); T*ol=l<3?out[l].get(n*ps):feat; T*yl=l?y[l].get(n*ys):nullptr; const T*xin=l?out[l-1].p:nullptr;
      memset(st.p,0,sizeof(double)*nth*G*2*C); auto bl=blocks(l,nth);
      for(int g=0;g<G;g++){ // shift: value at first image centre
        for(int c=0;c<C;c++) sh.p[g*C+c]=0; if(l==0){ const T*xb=x+(long)off[g]*784; for(int c=0;c<C;c++){ T a=0; for(int k=0;k<9;k++) a+=w9[k*C+c]*xb[(5+k/3)*28+5+k%3]; sh.p[g*C+c]=a; } } }
      #pragma omp parallel for num_threads(nth) schedule(static)
      for(int i=0;i<(int)bl.size(); i++){ auto b=bl[i]; int t=omp_get_thread_num(); T*yb;
        if(l==0){ yb=sy[t].get(ys); l1fwd(x+(long)b.s*784,w9.data(),28,28,yb); } else { yb=yl+b.s*ys; cfwd<T>(xin+b.s*ys,U[l].p,nullptr,nullptr,b.n,H,H,yb,ws[t]); }
        statpool(yb,b.n,H,H,sh.p+b.g*C,&ga[l*C],st.p+((size_t)t*G+b.g)*2*C,pml+b.s*ps,il+b.s*ps); }
      for(int g=0;g<G;g++){ double*s=st.p+g*2*C; for(int t=1;t<nth;t++) for(int c=0;c<2*C;c++) s[c]+=st.p[((size_t)t*G+g)*2*C+c];
        finstat(s,sh.p+g*C,(long)(off[g+1]-off[g])*H*H,mu.p+(l*G+g)*C,r.p+(l*G+g)*C,var_out+(l*G+g)*C); }
      memcpy(mean_out+l*G*C,mu.p+l*G*C,sizeof(T)*G*C);
      for(int g=0;g<G;g++){ const T*m=mu.p+(l*G+g)*C,*rr=r.p+(l*G+g)*C; 
        #pragma omp parallel for num_threads(nth)
        for(long p=off[g]*(long)h*h;p<off[g+1]*(long)h*h;p++) for(int c=0;c<C;c++){ T z=ga[l*C+c]*rr[c]*(pml[p*C+c]-m[c])+bet[l][c]; ol[p*C+c]=z>0?z:T(0); } }
      if(l==3) outp3=ol;
    } }
  const T*outp3;
  void bwd(const T*dfeat,const T*feat,T*const*dw,T*const*dga,T*const*dbe,int nth){
    Buf<T> dp; 
    for(int l=3;l>=0;l--){ int H=HS[l],h=HS[l+1]; long ys=(long)H*H*C,ps=(long)h*h*C; const T*dout=l==3?dfeat:din[l+1].p; const T*ol=l==3?feat:out[l].p; T*P=dp.get(n*(long)49*4*C); 
      std::vector<T> A(G*C),B(G*C); std::vector<double> acc((size_t)nth*2*C); for(int c=0;c<C;c++) dga[l][c]=dbe[l][c]=0;
      for(int g=0;g<G;g++){ const T*m=mu.p+(l*G+g)*C,*rr=r.p+(l*G+g)*C; std::fill(acc.begin(),acc.end(),0.0);
        #pragma omp parallel for num_threads(nth) schedule(static)
        for(int i=off[g];i<off[g+1];i++){ T s1[C]={},s2[C]={}; const T*d=dout+i*ps,*o=ol+i*ps,*pp=pm[l].p+i*ps; T*q=P+i*ps;
          for(long p=0;p<h*h;p++) for(int c=0;c<C;c++){ T z=o[p*C+c]>0?d[p*C+c]:T(0); s1[c]+=z; s2[c]+=z*(pp[p*C+c]-m[c])*rr[c]; q[p*C+c]=z*ga[l*C+c]*rr[c]; }
          double*a=&acc[(size_t)omp_get_thread_num()*2*C]; for(int c=0;c<C;c++){ a[c]+=s1[c]; a[C+c]+=s2[c]; } }
        double M=(double)(off[g+1]-off[g])*H*H;
        for(int c=0;c<C;c++){ double s1=0,s2=0; for(int t=0;t<nth;t++){ s1+=acc[(size_t)t*2*C+c]; s2+=acc[(size_t)t*2*C+C+c]; } dbe[l][c]+=T(s1); dga[l][c]+=T(s2);
          double a=(double)ga[l*C+c]*rr[c]; A[g*C+c]=T(-a*rr[c]*s2/M); B[g*C+c]=T(-a*s1/M+a*rr[c]*m[c]*s2/M); } }
      auto bl=blocks(l,nth); long us=l?16*C*C:9*C; T*du=dU.get((size_t)nth*16*C*C); T*dx=l?din[l].get(n*ys):nullptr;
      for(int t=0;t<nth;t++) memset(du+(size_t)t*us,0,sizeof(T)*us);
      #pragma omp parallel for num_threads(nth) schedule(static)
      for(int i=0;i<(int)bl.size();i++){ auto b=bl[i]; int t=omp_get_thread_num(); T*g=sg[t].get(b.n*ys); T*yb;
        if(l==0){ yb=sy[t].get(ys); l1fwd(x+(long)b.s*784,w9.data(),28,28,yb);} else yb=y[l].p+b.s*ys;
        dense<T>(yb,nullptr,b.n,H,H,&A[b.g*C],nullptr,&B[b.g*C],P+b.s*ps,idx[l].p+b.s*ps,g);
        if(l==0) l1bwd(x+(long)b.s*784,g,28,28,du+t*us); else cbwd<T>(out[l-1].p+b.s*ys,g,Ut[l].p,nullptr,nullptr,nullptr,b.n,H,H,du+(size_t)t*us,dx+b.s*ys,ws[t]); }
      for(int t=1;t<nth;t++) for(long k=0;k<us;k++) du[k]+=du[t*us+k];
      if(l) wxf_adj(du,dw[l]); else for(int a=0;a<9;a++) for(int o=0;o<C;o++) dw[0][o*9+a]=du[a*C+o];
    } }
};
#include "maml.hpp"
}
extern "C" {
#define DEF(T,S) void* trunk_new_##S(){return new Trunk<T>;} void trunk_del_##S(void*p){delete (Trunk<T>*)p;} \
 void trunk_fwd_##S(void*p,const T*x,int n,int G,const int*of,const T*const*w,const T*const*g,const T*const*b,T*feat,T*m,T*v,int nth){((Trunk<T>*)p)->fwd(x,n,G,of,w,g,b,feat,m,v,nth);} \
 void trunk_bwd_##S(void*p,const T*df,const T*f,T*const*dw,T*const*dg,T*const*db,int nth){((Trunk<T>*)p)->bwd(df,f,dw,dg,db,nth);}
DEF(float,f) DEF(double,d)
#define DEFM(T,S) void maml_##S(const T*theta,long np,const T*sx,const int*sy,int ns,const T*qx,const int*qy,int nq,int way,int tasks,int steps,double lr,int second,T*grad,T*loss,int nth){maml<T>(theta,np,sx,sy,ns,qx,qy,nq,way,tasks,steps,T(lr),second,grad,loss,nth);}
DEFM(float,f) DEFM(double,d)
}
